"""Right labels: one tap below a result, undo, the tally, the CSV, and what the service stores."""

import csv
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from app.feedback.store import NONE, Store
from tests.app.fakes import LABELS, image_file
from tests.app.running import eventually, serving
from tests.page.browsing import add, explanation, headline, mock_explain, succeed, visiting
from tests.page.test_gallery import add_six

QUESTION = "Was this right?"


def choose(page: Page, label: str) -> None:
    page.get_by_role("group", name=QUESTION).locator(f'[data-label="{label}"]').click()


def test_labels_count_on_the_page_and_are_in_the_csv(page: Page) -> None:
    add_six(page)
    chips = page.get_by_role("group", name=QUESTION).get_by_role("button")
    expect(chips).to_have_text(["Yes, truck", *LABELS[:-1], "none of these"])
    choose(page, "truck")
    expect(page.locator("#count")).to_have_text("6 images, 1 failed; 1 of 1 right")
    expect(page.locator("#question")).to_contain_text("Truck. It is counted on this page, and in the CSV.")
    expect(page.get_by_role("button", name="Yes, truck")).to_be_focused()
    page.get_by_role("button", name="Next image").click()
    choose(page, "frog")
    page.get_by_role("button", name="3.png").click()
    expect(chips.first).to_have_text("Yes, none of these")
    choose(page, "none of these")
    expect(page.locator("#count")).to_have_text("6 images, 1 failed; 2 of 3 right")
    marks = [each.get_attribute("class") for each in page.locator(".tile").all()]
    assert marks[:4] == ["tile confident right", "tile confident wrong", "tile uncertain", "tile other right"]
    page.locator("#filter").select_option("wrong")
    expect(page.locator("#tiles b")).to_have_text(["bird"])
    page.locator("#filter").select_option("all")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    with Path(download.value.path()).open(newline="") as file:
        assert [row["right_label"] for row in csv.DictReader(file)] == ["truck", "frog", "", "none of these", "", ""]
    page.locator("#unlabel").click()
    expect(page.locator("#count")).to_have_text("6 images, 1 failed; 1 of 2 right")
    expect(page.locator('.chips [aria-pressed="true"]')).to_have_count(0)
    expect(chips.first).to_be_focused()


def test_a_label_is_stored_changed_and_removed(browser: Browser, tmp_path: Path) -> None:
    def stored() -> list[str | None]:
        with Store(tmp_path / "store") as store:
            return [row.label for row in store.labelled()]

    with (
        serving(feedback=tmp_path / "store") as service,
        visiting(browser, f"{service.client.base_url}/") as page,
    ):
        add(page, ("a.png", image_file(1)))
        for name, label in (("none of these", NONE), ("deer", "deer")):
            choose(page, name)
            expect(page.locator("#question")).to_contain_text("The service has stored it.")
            assert stored() == [label]
        page.locator("#unlabel").click()
        eventually(lambda: stored() == [], "the label is removed")
        with Store(tmp_path / "store") as store:
            store.remove()
        choose(page, "none of these")
        expect(page.locator("#notice-text")).to_contain_text("The label of a.png was not stored: no prediction for")


def test_a_label_stays_when_the_image_is_classified_again(page: Page) -> None:
    mock_explain(page)
    add(page, ("a.png", image_file()), ("b.png", image_file()))
    choose(page, "dog")
    mock_explain(page, lambda route: succeed(route, explanation([("dog", 0.9)])))
    page.evaluate("document.getElementById('models').dispatchEvent(new Event('change'))")
    expect(headline(page)).to_have_text("Dog")
    expect(page.locator("#count")).to_have_text("2 images; 1 of 1 right")


def test_of_many_classes_the_most_probable_ones_are_offered_and_all_in_a_list(page: Page) -> None:
    labels = [*LABELS, *(f"class {number}" for number in range(90))]
    page.route("**/model?*", lambda route: route.fulfill(json={**route.fetch().json(), "labels": labels}))
    page.reload()
    mock_explain(page)
    add(page, ("a.png", image_file()))
    expect(page.locator(".chips button")).to_have_count(11)
    page.get_by_label("Another class").select_option("class 42")
    expect(page.locator("#question")).to_contain_text("Class 42.")
    expect(page.locator('.chips [aria-pressed="true"]')).to_have_text("class 42")
