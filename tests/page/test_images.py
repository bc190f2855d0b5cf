"""From upload to result: every way to add images, what is shown of a result, and the exports."""

import base64
import csv
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FileChooser, FilePayload, Page, Route, expect

from tests.app.fakes import CARD, LABELS, image_file, photo
from tests.app.running import Running
from tests.page.browsing import (
    EXPLAIN,
    add,
    explanation,
    headline,
    mock_explain,
    show_all_classes,
    succeed,
    wait_until,
)

# Dispatches the event of a browser in which files are dropped or pasted.
_DISPATCH = """([type, files]) => {
    const data = new DataTransfer();
    for (const [name, text] of files) {
        data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], name, {type: "image/png"}));
    }
    const event = type === "paste"
        ? new ClipboardEvent(type, {clipboardData: data, bubbles: true, cancelable: true})
        : new DragEvent(type, {dataTransfer: data, bubbles: true, cancelable: true});
    return document.body.dispatchEvent(event);
}"""


def send(page: Page, event: str, *names: str) -> bool:
    """Drop or paste files; returns whether the browser would also run its own action."""
    text = base64.b64encode(image_file()).decode()
    return bool(page.evaluate(_DISPATCH, [event, [[name, text] for name in names]]))


def test_an_image_is_sent_once_and_all_classes_are_requested(page: Page) -> None:
    requests = mock_explain(page)
    data = image_file()
    add(page, ("tom.png", data))
    expect(headline(page)).to_have_text("Cat")
    (request,) = requests
    assert request.url.endswith(f"/explain?top_k={len(LABELS)}&maps={len(LABELS)}")
    assert request.method == "POST"
    assert request.post_data_buffer == data
    assert request.headers["content-type"] == "application/octet-stream"
    assert "x-api-key" not in request.headers
    expect(page.locator("#name")).to_have_text("tom.png")
    expect(page.locator("#size")).to_have_text("400 \N{MULTIPLICATION SIGN} 300")
    expect(page.locator("#live")).to_have_text("tom.png: Cat. 90.0% sure.")


def test_with_the_real_service(page: Page, running: Running) -> None:
    data = photo(size=(300, 200))
    add(page, ("a.png", data))
    expected = running.client.post("/explain", params={"top_k": 10}, content=data).json()
    rows = page.locator(".ranking button")
    expect(rows).to_have_count(10)
    assert [row.get_attribute("data-label") for row in rows.all()] == [
        each["label"] for each in expected["result"]["top_k"]
    ]
    sources = [view["input"] for view in expected["views"]]
    assert page.locator("#view-list img").evaluate_all("all => all.map((e) => e.src)") == sources
    expect(page.locator("#stage canvas")).to_be_visible()
    show_all_classes(page)
    page.context.set_offline(True)  # the maps of all classes are loaded already
    rows.nth(9).click()
    label = expected["result"]["top_k"][9]["label"]
    expect(page.locator("#where")).to_contain_text(f" {label}")
    page.context.set_offline(False)


def test_the_same_file_can_be_added_again(page: Page) -> None:
    requests = mock_explain(page)
    for times in (1, 2):
        add(page, ("tom.png", image_file()))
        expect(headline(page)).to_have_text("Cat")
        assert len(requests) == times


def test_drop(page: Page) -> None:
    mock_explain(page)
    send(page, "dragenter", "a.png")
    expect(page.locator("body")).to_have_class("dragging")
    assert send(page, "dragover", "a.png") is False
    assert send(page, "drop", "a.png", "b.png") is False  # else the browser opens the file
    expect(page.locator("body")).to_have_class("filled")
    expect(page.locator("#tiles li")).to_have_count(2)
    expect(page.locator("#count")).to_have_text("2 images")


def test_paste(page: Page) -> None:
    mock_explain(page)
    send(page, "paste", "image.png")
    expect(headline(page)).to_have_text("Cat")


def test_examples(page: Page) -> None:
    requests = mock_explain(page)
    assert page.locator("#examples button").all_inner_texts() == LABELS
    for example in page.locator("#samples img").all():
        wait_until(page, lambda: example.evaluate("e => e.naturalWidth > 100"), "it is shown")  # noqa: B023
        assert example.get_attribute("loading") == "lazy"
    page.get_by_role("button", name="truck", exact=True).click()
    expect(headline(page)).to_have_text("Cat")
    expect(page.locator("#result")).to_contain_text("Photo by Aaron M. Lang (CC BY 2.5).")
    page.get_by_role("button", name="coffee", exact=True).click()
    expect(page.locator("#name")).to_have_text("coffee.jpg")
    expect(page.locator("#result")).to_contain_text("in the public domain (CC0)")
    wait_until(page, lambda: len(requests) == 2, "the second request")
    assert (requests[1].post_data_buffer or b"").startswith(b"\xff\xd8")


@pytest.mark.parametrize(
    ("labels", "shown"),
    [(["Cat", "dog"], ["cat", "dog", "coffee", "tiger", "rabbit"]), (["ship", "tiger"], ["ship", "coffee", "rabbit"])],
)
def test_examples_of_classes_that_the_model_lacks_are_not_offered(
    page: Page, labels: list[str], shown: list[str]
) -> None:
    page.route("**/model?*", lambda route: route.fulfill(json={**route.fetch().json(), "labels": labels}))
    page.reload()
    expect(page.locator("#samples button:visible")).to_have_text(shown)


def test_keyboard_only(own_page: Page) -> None:
    choosers: list[FileChooser] = []
    # Registered early: the subscription reaches the browser asynchronously. Playwright accepts no built-in function.
    own_page.on("filechooser", lambda chooser: choosers.append(chooser))  # noqa: PLW0108
    mock_explain(own_page)
    expect(own_page.locator("header")).to_contain_text(CARD.name)
    own_page.get_by_role("button", name="Choose images").focus()
    own_page.keyboard.press("Enter")
    wait_until(own_page, lambda: bool(choosers), "the file dialogue opens")
    (chooser,) = choosers
    assert chooser.is_multiple()
    chooser.set_files([FilePayload(name=f"{n}.png", mimeType="image/png", buffer=image_file(n)) for n in range(2)])
    expect(own_page.locator("#count")).to_have_text("2 images")
    own_page.get_by_role("button", name="1.png: cat").focus()
    own_page.keyboard.press("Enter")
    expect(own_page.locator("#name")).to_have_text("1.png")
    own_page.get_by_role("button", name="dog, 6.0%").focus()
    own_page.keyboard.press("Space")
    expect(own_page.get_by_role("button", name="dog, 6.0%")).to_have_attribute("aria-pressed", "true")
    own_page.get_by_role("button", name="Remove").focus()
    own_page.keyboard.press("Enter")
    expect(own_page.locator("#name")).to_have_text("0.png")
    expect(own_page.get_by_role("button", name="Remove")).to_be_focused()
    own_page.keyboard.press("Enter")
    expect(own_page.locator("#detail")).to_be_hidden()
    expect(own_page.get_by_role("button", name="Choose images")).to_be_focused()


@pytest.mark.parametrize(
    ("result", "heading", "lead"),
    [
        ({}, "Cat", "90.0% sure."),
        ({"ranking": [("cat", 0.999956)]}, "Cat", "More than 99.9% sure."),
        (
            {"verdict": "uncertain"},
            "Maybe a cat, or a dog",
            "90.0% sure. A dog has 6.0%.",
        ),
        ({"ranking": [("cat", 0.295), ("deer", 0.2)]}, "Maybe a cat, or a deer", "29.5% sure. A deer has 20.0%."),
        ({"in_distribution": 0.4}, "Probably a cat", "90.0% sure, but it is hardly a typical one."),
        (
            {"verdict": "uncertain", "in_distribution": 0.2, "ranking": [("airplane", 0.9), ("dog", 0.1)]},
            "Maybe an airplane, or something else",
            "It is not typical of an airplane, so it may be none of the ten things it knows.",
        ),
        (
            {"verdict": "other", "in_distribution": 0.1},
            "Probably none of the ten things it knows",
            "The closest is a cat.",
        ),
    ],
)
def test_headline(page: Page, result: dict[str, Any], heading: str, lead: str) -> None:
    mock_explain(page, lambda route: succeed(route, explanation(**result)))
    add(page, ("a.png", image_file()))
    expect(headline(page)).to_have_text(heading)
    expect(page.locator(".lead")).to_have_text(lead)


def test_ranking_warnings_and_timing(page: Page) -> None:
    mock_explain(
        page, lambda route: succeed(route, explanation(warnings=["upscaled from 8x8", "animated: first frame"]))
    )
    add(page, ("a.png", image_file()))
    rows = page.locator(".ranking li")
    expect(rows).to_have_count(10)
    expect(rows.nth(2)).to_be_visible()
    expect(rows.nth(3)).to_be_hidden()
    show_all_classes(page)
    expect(rows.nth(9)).to_be_visible()
    page.get_by_text("Time:").click()
    expect(rows.nth(0)).to_have_text("cat90.0%")
    assert rows.nth(1).locator("i").evaluate("e => e.offsetWidth / e.parentElement.offsetWidth") == pytest.approx(
        0.06, abs=0.01
    )
    expect(page.get_by_role("list", name="Warnings").locator("li")).to_have_text(
        [
            "Small image: enlarged from 8 \N{MULTIPLICATION SIGN} 8 "
            "for the 32 \N{MULTIPLICATION SIGN} 32 pixels of the network.",
            "Animated: first frame.",
        ]
    )
    expect(page.locator(".timing dl > div")).to_have_text(
        ["decode4.0 ms", "queue1.0 ms", "inference12.0 ms", "rest3.0 ms"]
    )
    widths = page.locator(".stack i").evaluate_all("all => all.map((e) => e.offsetWidth)")
    assert widths[2] == pytest.approx(sum(widths) * 12 / 20, abs=3)
    assert page.locator(".stack").evaluate("e => e.offsetHeight") > 5


def opacity(page: Page, x: float, y: float) -> int:
    """Opacity of the heat map, 0 to 255, at a position given as fractions of the image."""
    value = page.locator("#stage canvas").evaluate(
        """(canvas, [x, y]) => canvas.getContext("2d")
            .getImageData(x * canvas.width, y * canvas.height, 1, 1).data[3]""",
        [x, y],
    )
    return int(value)


def test_the_heat_map_is_drawn_over_the_image_and_can_be_hidden(page: Page) -> None:
    mock_explain(page, lambda route: succeed(route, explanation(peak=(0, 0))))
    add(page, ("a.png", image_file(size=(400, 300))))
    canvas = page.locator("#stage canvas")
    expect(canvas).to_be_visible()
    assert opacity(page, 0.25, 0.12) > 2 * opacity(page, 0.9, 0.9)
    expect(page.locator("#where")).to_have_text("The strongest evidence for cat is in the upper left.")
    expect(canvas).to_have_attribute("aria-label", "Heat map: the strongest evidence for cat is in the upper left")
    assert canvas.bounding_box() == page.locator("#stage img").bounding_box()
    button = page.get_by_role("button", name="Heat map")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(canvas).to_be_hidden()
    page.get_by_role("button", name="dog, 6.0%").click()  # stays hidden
    expect(canvas).to_be_hidden()
    button.click()
    expect(canvas).to_be_visible()


def test_the_heat_map_of_another_class_is_requested_once(page: Page) -> None:
    def reply(route: Route) -> None:
        dog = "label=dog" in route.request.url
        succeed(route, explanation(label="dog" if dog else "cat", peak=(3, 3) if dog else (0, 0)))

    requests = mock_explain(page, reply)
    add(page, ("a.png", image_file()))
    dog, cat = page.get_by_role("button", name="dog, 6.0%"), page.get_by_role("button", name="cat, 90.0%")
    expect(cat).to_have_attribute("aria-pressed", "true")
    dog.click()
    expect(page.locator("#where")).to_have_text("The strongest evidence for dog is in the lower right.")
    expect(dog).to_have_attribute("aria-pressed", "true")
    expect(cat).to_have_attribute("aria-pressed", "false")
    assert opacity(page, 0.75, 0.88) > 2 * opacity(page, 0.1, 0.1)
    assert requests[1].url.endswith("/explain?top_k=10&label=dog&maps=10")
    expect(headline(page)).to_have_text("Cat")
    cat.click()
    expect(page.locator("#where")).to_contain_text("upper left")
    assert len(requests) == 2


def test_a_class_without_evidence(page: Page) -> None:
    body = explanation()
    for view in body["views"]:
        view["map"] = [[-1.0] * 4] * 4
    mock_explain(page, lambda route: succeed(route, body))
    add(page, ("a.png", image_file()))
    expect(page.locator("#where")).to_have_text("There is no evidence for cat.")


def test_the_views_are_shown_enlarged_and_can_be_selected(page: Page) -> None:
    mock_explain(page)
    add(page, ("a.png", image_file(size=(400, 300))))
    images = page.locator("#view-list img")
    expect(images).to_have_count(2)
    assert images.nth(0).get_attribute("src") == explanation()["views"][0]["input"]
    assert images.nth(0).evaluate("e => [e.naturalWidth, e.width > 100, getComputedStyle(e).imageRendering]") == [
        32,
        True,
        "pixelated",
    ]
    button = page.get_by_role("button", name="View 1 of 2")
    button.click()
    box, stage = page.locator("#stage .box").bounding_box(), page.locator("#stage").bounding_box()
    assert box
    assert stage
    assert (box["x"] - stage["x"]) / stage["width"] == pytest.approx(50 / 400, abs=0.01)
    assert box["width"] / stage["width"] == pytest.approx(300 / 400, abs=0.01)
    expect(button).to_be_focused()
    button.press("Enter")
    expect(page.locator("#stage .box")).to_be_hidden()


def test_four_requests_at_a_time_and_many_images(page: Page) -> None:
    held: list[Route] = []
    holding = True
    requests = mock_explain(page, lambda route: held.append(route) if holding else succeed(route))
    data = image_file()
    add(page, *[(f"{number}.png", data) for number in range(100)])
    expect(page.locator("#tiles li")).to_have_count(100)
    for done in range(3):
        wait_until(page, lambda: len(requests) >= 4 + done, "the next request")  # noqa: B023
        page.wait_for_timeout(100)
        assert len(requests) == 4 + done
        succeed(held.pop(0))
    holding = False
    for route in held:
        succeed(route)
    expect(page.locator("#count")).to_have_text("100 images")
    expect(page.locator("#live")).to_have_text("All 100 images are done.")
    expect(page.locator("#stage img")).to_have_count(1)  # only the selected image is in full size
    assert page.locator("#tiles img").first.evaluate("e => [e.loading, e.src.slice(0, 5)]") == ["lazy", "blob:"]


def add_three(page: Page) -> None:
    """Add three images, and a file that is not an image."""
    results = {
        b"0": explanation([("truck", 0.9)], in_distribution=0.5),
        b"1": explanation([("bird", 0.8)], in_distribution=0.9),
        b"2": explanation([("cat", 0.99)], in_distribution=0.1, verdict="other"),
    }

    def reply(route: Route) -> None:
        body = results.get(route.request.post_data_buffer or b"")
        if body:
            succeed(route, body)
        else:
            problem = {"type": "urn:tenfold:unsupported-picture", "title": "Not an image", "detail": "send an image"}
            route.fulfill(status=415, body=json.dumps(problem), content_type="application/problem+json")

    mock_explain(page, reply)
    add(page, ("=cmd|'x'!A1.png", b"0"), ('b, "q".png', b"1"), ("c.png", b"2"), ("d.txt", b"3"))
    expect(page.locator("#count")).to_have_text("4 images, 1 failed")


def labels(page: Page) -> list[str]:
    return page.locator("#tiles b").all_text_contents()


def test_the_gallery_can_be_sorted_and_filtered(page: Page) -> None:
    add_three(page)
    truck, bird, other, failed = "truck", "bird", "none of ten", "not an image"
    assert labels(page) == [truck, bird, other, failed]
    for order, expected in {
        "by class": [bird, other, truck, failed],
        "most confident first": [other, truck, bird, failed],
        "most typical first": [bird, truck, other, failed],
        "as added": [truck, bird, other, failed],
    }.items():
        page.get_by_role("combobox", name="Order").select_option(order)
        assert labels(page) == expected, order
    for kind, expected in {
        "confident": [truck, bird],
        "uncertain": [],
        "other": [other],
        "class:bird": [bird],
        "failed": [failed],
        "all": [truck, bird, other, failed],
    }.items():
        page.get_by_role("combobox", name="Show").select_option(kind)
        assert labels(page) == expected, kind
        if len(expected) < 4:
            expect(page.locator("#count")).to_contain_text(f"{len(expected)} shown")


def test_csv(page: Page) -> None:
    add_three(page)
    page.get_by_role("combobox", name="Order").select_option("most confident first")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "tenfold.csv"
    data = Path(download.value.path()).read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") == 5
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
    assert [row["name"] for row in rows] == ["c.png", "'=cmd|'x'!A1.png", 'b, "q".png', "d.txt"]
    assert list(rows[0])[-10:] == LABELS
    assert rows[2] | {"label": "bird", "probability": "0.8", "in_distribution": "0.9", "verdict": "accepted"} == rows[2]
    assert rows[2]["bird"] == "0.8"
    assert {row["right_label"] for row in rows} == {""}
    assert rows[2] | {"width": "400", "height": "300", "model": CARD.name, "version": CARD.version} == rows[2]
    assert (rows[0]["verdict"], rows[0]["accepted"], rows[0]["problem"]) == ("other", "false", "")
    assert (rows[3]["label"], rows[3]["problem"]) == ("", "send an image")


@pytest.mark.parametrize("name", ["cat.png", """it's; a "cat", $(touch x) `y` \\ -é.png"""], ids=["plain", "nasty"])
def test_the_code_works_as_it_is_copied(own_page: Page, running: Running, tmp_path: Path, name: str) -> None:
    own_page.route(EXPLAIN, lambda route: route.fulfill(status=404))  # the code then uses /predict
    own_page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    (tmp_path / name).write_bytes(image_file())
    own_page.set_input_files("#files", tmp_path / name)
    own_page.get_by_text("As JSON, or as code").click()
    shown = json.loads(own_page.locator("#command").inner_text())["results"][0]
    expect(own_page.locator(".ranking li").first).to_contain_text(shown["top_k"][0]["label"])
    for language, command in {
        "curl": ["bash", "-c"],
        "Python": [sys.executable, "-c"],
        "JavaScript": ["node", "--input-type=module", "-e"],
    }.items():
        own_page.get_by_role("button", name=language, exact=True).click()
        own_page.locator("#copy").click()
        expect(own_page.locator("#live")).to_have_text(
            f"Copied the {language} code. Run it in the folder of the image."
        )
        code = own_page.evaluate("navigator.clipboard.readText()")
        assert own_page.locator("#command").inner_text() == code
        if shutil.which(command[0]) and (language != "curl" or shutil.which("curl")):
            done = subprocess.run([*command, code], cwd=tmp_path, capture_output=True, check=True)
            assert json.loads(done.stdout)["results"][0]["top_k"] == shown["top_k"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_remove_and_clear(page: Page) -> None:
    mock_explain(page)
    add(page, ("a.png", image_file()), ("b.png", image_file()), ("c.png", image_file()))
    expect(page.locator("#count")).to_have_text("3 images")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#name")).to_have_text("b.png")
    expect(page.locator("#tiles li")).to_have_count(2)
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#gallery")).to_be_hidden()
    expect(page.locator("#live")).to_have_text("Removed 2 images.")
