"""Many images: the keyboard, the position, the filter, what is removed, and the first screen of a phone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, Locator, Page, Route, expect

from tests.app.fakes import image_file
from tests.app.running import Running
from tests.page.browsing import add, explanation, fail, headline, mock_explain, succeed, visiting, wait_until

RESULTS: dict[bytes, dict[str, Any]] = {
    b"0": explanation([("truck", 0.7)]),
    b"1": explanation([("bird", 0.9)]),
    b"2": explanation([("frog", 0.918)], in_distribution=0.2, verdict="uncertain"),
    b"3": explanation([("cat", 0.99)], in_distribution=0.1, verdict="other"),
    b"4": explanation([("bird", 0.8)]),
}
SIX = [*RESULTS, b"x"]


def reply(route: Route) -> None:
    """Respond by the content of the file."""
    body = RESULTS.get(route.request.post_data_buffer or b"")
    if body:
        succeed(route, body)
    else:
        fail(route, 415, "unsupported-image", "a text file is not an image")


def add_six(page: Page, contents: Sequence[bytes] = SIX) -> None:
    """Add files named 0.png to 4.png and x.png."""
    mock_explain(page, reply)
    add(page, *[(f"{content.decode()}.png", content) for content in contents])
    expect(page.locator("#tiles li")).to_have_count(len(contents))
    expect(page.locator(".tile.pending")).to_have_count(0)


@pytest.fixture
def six(page: Page) -> Page:
    """The page with six images, one of them failed."""
    add_six(page)
    expect(page.locator("#count")).to_have_text("6 images, 1 failed")
    return page


def tile(page: Page, name: str) -> Locator:
    return page.locator(f'.tile[title="{name}.png"]')


def test_the_tiles_show_the_state(six: Page) -> None:
    expected = ["truck70.0%", "bird90.0%", "frog?not typical", "none of ten", "bird80.0%", "A title"]
    expect(six.locator(".caption")).to_have_text(expected)
    expect(tile(six, "2")).to_have_class("tile uncertain")
    expect(tile(six, "3")).to_have_class("tile other")
    borders = [
        six.locator(f".{kind} .caption").first.evaluate("e => getComputedStyle(e).borderTopStyle")
        for kind in ("confident", "uncertain", "other")
    ]
    assert borders == ["solid", "dashed", "dotted"]  # that of confident ones is transparent


def test_the_keyboard_walks_through_the_tiles(six: Page) -> None:
    expect(six.locator('.tile[tabindex="0"]')).to_have_count(1)
    tile(six, "0").focus()
    for key, name in (
        ("ArrowRight", "1"),
        ("ArrowRight", "2"),
        ("ArrowLeft", "1"),
        ("End", "x"),
        ("ArrowRight", "x"),
        ("Home", "0"),
        ("ArrowDown", "0"),
    ):
        six.keyboard.press(key)
        expect(tile(six, name)).to_be_focused()
        expect(six.locator("#name")).to_have_text(f"{name}.png")
        expect(tile(six, name)).to_have_attribute("tabindex", "0")
        expect(six.locator('.tile[tabindex="0"]')).to_have_count(1)
    six.keyboard.press("ArrowRight")
    expect(six.locator("#live")).to_have_text("1.png, 2 of 6: Bird. 90.0% sure.")
    six.keyboard.press("Delete")
    expect(tile(six, "2")).to_be_focused()
    expect(six.locator("#tiles li")).to_have_count(5)
    six.keyboard.press("Escape")
    expect(headline(six)).to_be_focused()
    expect(headline(six)).to_have_text("Maybe a frog, or something else")
    six.keyboard.press("Escape")
    expect(tile(six, "2")).to_be_focused()


def test_the_rows_of_all_tiles(six: Page) -> None:
    six.set_viewport_size({"width": 480, "height": 900})  # three in a row
    try:
        six.get_by_role("button", name="Show all").click()
        assert len({box["y"] for each in six.locator(".tile").all() if (box := each.bounding_box())}) == 2
        tile(six, "0").focus()
        six.keyboard.press("ArrowDown")
        expect(tile(six, "3")).to_be_focused()
        six.keyboard.press("ArrowUp")
        expect(tile(six, "0")).to_be_focused()
        six.keyboard.press("Escape")
        expect(six.get_by_role("button", name="Show all")).to_have_attribute("aria-expanded", "false")
        expect(tile(six, "0")).to_be_focused()
    finally:
        six.set_viewport_size({"width": 1280, "height": 900})


def test_a_chosen_tile_shows_and_focuses_a_verdict_that_was_out_of_sight(six: Page) -> None:
    six.set_viewport_size({"width": 1280, "height": 420})
    try:
        tile(six, "2").click()
        expect(headline(six)).to_have_text("Maybe a frog, or something else")
        expect(headline(six)).to_be_focused()
        expect(headline(six)).to_be_in_viewport(ratio=1)
        six.locator("#model").scroll_into_view_if_needed()
        six.keyboard.press("ArrowRight")
        expect(headline(six)).to_have_text("Probably none of the ten things it knows")
        expect(headline(six)).to_be_in_viewport(ratio=1)
    finally:
        six.set_viewport_size({"width": 1280, "height": 900})


def test_previous_and_next(six: Page) -> None:
    expect(six.locator("#position")).to_have_text("1 of 6")
    expect(six.get_by_role("button", name="Previous image")).to_be_disabled()
    six.get_by_role("button", name="Next image").click()
    expect(six.locator("#name")).to_have_text("1.png")
    headline(six).focus()
    six.keyboard.press("ArrowRight")
    expect(six.locator("#name")).to_have_text("2.png")
    six.keyboard.press("ArrowLeft")
    expect(six.locator("#name")).to_have_text("1.png")
    six.locator("#divider").focus()
    six.keyboard.press("ArrowRight")  # moves the divider
    expect(six.locator("#name")).to_have_text("1.png")
    six.locator("#filter").select_option("class:bird")
    expect(six.locator("#position")).to_have_text("1 of 2")
    six.get_by_role("button", name="Next image").click()
    expect(six.locator("#name")).to_have_text("4.png")
    expect(six.get_by_role("button", name="Next image")).to_be_disabled()


def test_the_filter_has_the_classes_with_counts_and_names_the_csv(six: Page) -> None:
    assert six.locator("#filter option").all_text_contents() == [
        *("all", "confident (3)", "uncertain (1)", "none of the classes (1)", "failed (1)"),
        *("bird (2)", "frog (1)", "truck (1)"),
    ]
    six.locator("#filter").select_option("class:bird")
    expect(six.locator("#count")).to_have_text("6 images, 1 failed; 2 shown")
    with six.expect_download() as download:
        six.get_by_role("button", name="Download CSV of 2").click()
    assert download.value.suggested_filename == "tenfold-2-of-6.csv"


def test_the_next_image_is_shown_if_another_than_the_chosen_one_is_removed(six: Page) -> None:
    six.locator("#filter").select_option("class:bird")  # hides the chosen one, a truck
    tile(six, "1").focus()
    six.keyboard.press("Delete")
    expect(six.locator("#tiles li")).to_have_count(1)
    expect(six.locator("#name")).to_have_text("4.png")


@pytest.mark.parametrize(
    ("remove", "text"),
    [
        (lambda page: page.get_by_role("button", name="Clear all").click(), "Removed 6 images."),
        (lambda page: page.get_by_role("button", name="Remove", exact=True).click(), "Removed 0.png."),
    ],
    ids=["all", "one"],
)
def test_what_is_removed_can_be_put_back(six: Page, remove: Callable[[Page], None], text: str) -> None:
    remove(six)
    expect(six.locator("#notice-text")).to_have_text(text)
    six.get_by_role("button", name="Undo").click()
    expect(six.locator("#tiles b")).to_have_text(["truck", "bird", "frog?", "none of ten", "bird", "A title"])
    expect(six.locator("#notice")).to_be_hidden()
    expect(headline(six)).to_have_text("Truck")
    six.locator(".ranking button").nth(1).click()  # can still be explained
    expect(six.locator(".ranking button").nth(1)).to_have_attribute("aria-pressed", "true")


def test_images_in_progress_are_sent_again_after_undo(page: Page) -> None:
    held: list[Route] = []
    mock_explain(page, held.append)
    add(page, ("0.png", b"0"))
    expect(headline(page)).to_have_text("Classifying …")
    page.get_by_role("button", name="Remove").click()
    mock_explain(page, reply)
    page.get_by_role("button", name="Undo").click()
    expect(headline(page)).to_have_text("Truck")


def test_a_question_before_leaving_with_results(browser: Browser, running: Running) -> None:
    questions: list[str] = []

    def stay(dialog: Dialog) -> None:
        questions.append(dialog.type)
        dialog.dismiss()

    with browser.new_context() as context:
        page = context.new_page()
        page.on("dialog", stay)
        page.goto(f"{running.client.base_url}/")
        add_six(page, [b"0"])
        page.locator("#name").click()  # required by browsers
        page.close(run_before_unload=True)
        expect(headline(page)).to_have_text("Truck")
        wait_until(page, lambda: bool(questions), "the question")
        assert questions == ["beforeunload"]


def test_progress_of_many_images(page: Page) -> None:
    held: list[Route] = []
    mock_explain(page, held.append)
    add(page, *[(f"{number}.png", b"0") for number in range(60)])
    expect(page.locator("#count")).to_have_text("0 of 60 done")
    progress = page.get_by_role("progressbar", name="Images that are done")
    expect(progress).to_have_attribute("max", "60")
    wait_until(page, lambda: len(held) == 4, "four requests")
    for route in held[:4]:
        succeed(route)
    expect(page.locator("#count")).to_have_text("4 of 60 done")
    assert progress.evaluate("e => e.value") == 4
    expect(page.locator("#count")).to_be_in_viewport()


@pytest.fixture(scope="module")
def phone(browser: Browser, running: Running) -> Iterator[Page]:
    """The page on a phone."""
    options = {"viewport": {"width": 390, "height": 664}, "is_mobile": True, "has_touch": True}
    with visiting(browser, f"{running.client.base_url}/", **options) as page:
        yield page


def bottom(part: Locator) -> float:
    box = part.bounding_box()
    assert box
    return box["y"] + box["height"]


def test_the_answer_is_on_the_first_screen_of_a_phone(phone: Page) -> None:
    data = image_file(size=(400, 300))
    mock_explain(phone, lambda route: succeed(route, RESULTS[b"2"]))
    add(phone, ("a.png", data))
    expect(headline(phone)).to_have_text("Maybe a frog, or something else")
    image = phone.locator("#stage").bounding_box()
    assert image
    assert bottom(phone.locator(".lead")) <= image["y"]
    assert bottom(phone.locator("#stage")) <= 664
    assert phone.evaluate("scrollY") == 0
    add(phone, *[(f"{number}.png", data) for number in range(9)])
    expect(phone.locator("#count")).to_have_text("10 images")
    assert bottom(phone.locator("#tiles")) < bottom(phone.locator("#verdict")) <= 664
    phone.get_by_role("button", name="Show all").tap()
    phone.locator(".tile").last.tap()
    expect(headline(phone)).to_be_in_viewport(ratio=1)
    expect(phone.locator("#position")).to_have_text("10 of 10")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
