"""Images in, answers out: every way in, what is shown of an answer, and what can be taken away."""

import base64
import csv
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FileChooser, FilePayload, Page, Route, expect

from tests.app.fakes import CARD, LABELS, photo, picture
from tests.app.running import Running
from tests.page.browsing import FILE, add, answer, answering, explanation, verdict

# Makes the event that the browser makes when files are dropped or pasted.
_EVENT = """([type, files]) => {
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
    """Drop or paste files; whether the browser would still do what it does with them by itself."""
    text = base64.b64encode(picture()).decode()
    return bool(page.evaluate(_EVENT, [event, [[name, text] for name in names]]))


def test_a_picked_picture_is_asked_about_once_with_all_classes(page: Page) -> None:
    requests = answering(page)
    data = picture()
    add(page, ("tom.png", data))
    expect(verdict(page)).to_have_text("Cat")
    (request,) = requests
    assert request.url.endswith(f"/explain?top_k={len(LABELS)}")
    assert request.method == "POST"
    assert request.post_data_buffer == data
    assert request.headers["content-type"] == "application/octet-stream"
    assert "x-api-key" not in request.headers
    expect(page.locator("#name")).to_have_text("tom.png")
    expect(page.locator("#size")).to_have_text("400 \N{MULTIPLICATION SIGN} 300")
    expect(page.locator("#live")).to_have_text("tom.png: Cat. 90.0 % sure.")


def test_the_service_itself_classifies_and_explains(page: Page, running: Running) -> None:
    data = photo(size=(300, 200))
    add(page, ("a.png", data))
    told = running.client.post("/explain", params={"top_k": 10}, content=data).json()
    rows = page.locator(".ranking button")
    expect(rows).to_have_count(10)
    assert [row.get_attribute("data-label") for row in rows.all()] == [
        each["label"] for each in told["result"]["top_k"]
    ]
    sources = [view["input"] for view in told["views"]]
    assert page.locator("#view-list img").evaluate_all("all => all.map((e) => e.src)") == sources
    expect(page.locator("#stage canvas")).to_be_visible()
    with page.expect_response(FILE) as asked:
        rows.nth(9).click()
    label = told["result"]["top_k"][9]["label"]
    assert asked.value.json()["label"] == label
    expect(page.locator("#where")).to_contain_text(f" {label}")


def test_the_same_picture_can_be_picked_again(page: Page) -> None:
    requests = answering(page)
    for times in (1, 2):
        add(page, ("tom.png", picture()))
        expect(verdict(page)).to_have_text("Cat")
        assert len(requests) == times


def test_dropped_pictures(page: Page) -> None:
    answering(page)
    send(page, "dragenter", "a.png")
    expect(page.locator("body")).to_have_class("dragging")
    assert send(page, "dragover", "a.png") is False
    assert send(page, "drop", "a.png", "b.png") is False  # the browser would open it
    expect(page.locator("body")).to_have_class("filled")
    expect(page.locator("#tiles li")).to_have_count(2)
    expect(page.locator("#count")).to_have_text("2 pictures")


def test_a_pasted_picture(page: Page) -> None:
    answering(page)
    send(page, "paste", "image.png")
    expect(verdict(page)).to_have_text("Cat")


def test_an_example_is_drawn_and_sent_as_png(page: Page) -> None:
    requests = answering(page)
    page.get_by_role("button", name="drawn ship").click()
    expect(verdict(page)).to_have_text("Cat")
    assert (requests[0].post_data_buffer or b"").startswith(b"\x89PNG")
    expect(page.locator("#say")).to_contain_text("Drawn by this page.")


def test_the_keyboard_is_enough(page: Page) -> None:
    choosers: list[FileChooser] = []
    # Listened for long before: on a busy machine the browser learns of it late. Playwright takes no built-in function.
    page.on("filechooser", lambda chooser: choosers.append(chooser))  # noqa: PLW0108
    answering(page)
    expect(page.locator("header")).to_contain_text(CARD.name)
    page.get_by_role("button", name="Choose pictures").focus()
    page.keyboard.press("Enter")
    while not choosers:
        page.wait_for_timeout(50)
    (chooser,) = choosers
    assert chooser.is_multiple()
    chooser.set_files([FilePayload(name=f"{n}.png", mimeType="image/png", buffer=picture(n)) for n in range(2)])
    expect(page.locator("#count")).to_have_text("2 pictures")
    page.get_by_role("button", name="1.png: cat").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("1.png")
    page.get_by_role("button", name="dog, 6.0 %").focus()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="dog, 6.0 %")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Remove").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#name")).to_have_text("0.png")
    expect(page.get_by_role("button", name="Remove")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.get_by_role("button", name="Choose pictures")).to_be_focused()


@pytest.mark.parametrize(
    ("told", "heading", "lead"),
    [
        ({}, "Cat", "90.0 % sure."),
        ({"ranking": [("cat", 0.999956)]}, "Cat", "> 99.9 % sure."),
        ({"ranking": [("cat", 0.45), ("dog", 0.4)]}, "Unsure: cat or dog", "Cat, 45.0 %; dog, 40.0 %."),
        ({"accepted": False}, "Unsure: cat or dog", "Cat, 90.0 %; dog, 6.0 %."),
        (
            {"accepted": False, "in_distribution": 0.2},
            "Probably none of the ten",
            "If it had to be one: cat, 90.0 %.",
        ),
    ],
)
def test_the_verdict_in_words(page: Page, told: dict[str, Any], heading: str, lead: str) -> None:
    answering(page, lambda route: answer(route, explanation(**told)))
    add(page, ("a.png", picture()))
    expect(verdict(page)).to_have_text(heading)
    expect(page.locator(".lead")).to_have_text(lead)


def test_all_classes_are_ranked_and_warnings_and_times_are_told(page: Page) -> None:
    answering(page, lambda route: answer(route, explanation(warnings=["upscaled from 8x8", "animated: first frame"])))
    add(page, ("a.png", picture()))
    rows = page.locator(".ranking li")
    expect(rows).to_have_count(10)
    expect(rows.nth(0)).to_have_text("cat90.0 %")
    assert rows.nth(1).locator("i").evaluate("e => e.offsetWidth / e.parentElement.offsetWidth") == pytest.approx(
        0.06, abs=0.01
    )
    expect(page.get_by_role("list", name="Warnings").locator("li")).to_have_text(
        ["Upscaled from 8x8.", "Animated: first frame."]
    )
    expect(page.locator(".timing dl > div")).to_have_text(
        ["decode4.0 ms", "queue1.0 ms", "inference12.0 ms", "rest3.0 ms"]
    )
    widths = page.locator(".stack i").evaluate_all("all => all.map((e) => e.offsetWidth)")
    assert widths[2] == pytest.approx(sum(widths) * 12 / 20, abs=3)
    assert page.locator(".stack").evaluate("e => e.offsetHeight") > 5


def brightness(page: Page, x: float, y: float) -> int:
    """Of the heat map at a place given in shares of the picture."""
    got = page.locator("#stage canvas").evaluate(
        """(canvas, [x, y]) => canvas.getContext("2d")
            .getImageData(x * canvas.width, y * canvas.height, 1, 1).data.slice(0, 3).reduce((a, b) => a + b)""",
        [x, y],
    )
    return int(got)


def test_the_heat_map_lies_where_the_map_says_and_can_be_put_away(page: Page) -> None:
    answering(page, lambda route: answer(route, explanation(peak=(0, 0))))
    add(page, ("a.png", picture(size=(400, 300))))
    canvas = page.locator("#stage canvas")
    expect(canvas).to_be_visible()
    assert brightness(page, 0.25, 0.12) > 2 * brightness(page, 0.9, 0.9)
    expect(page.locator("#where")).to_have_text("What speaks most for cat is in the upper left.")
    expect(canvas).to_have_attribute("aria-label", "Heat map: what speaks most for cat is in the upper left")
    assert canvas.bounding_box() == page.locator("#stage img").bounding_box()
    button = page.get_by_role("button", name="Heat map")
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    expect(canvas).to_be_hidden()
    page.get_by_role("button", name="dog, 6.0 %").click()  # and it stays away
    expect(canvas).to_be_hidden()
    button.click()
    expect(canvas).to_be_visible()


def test_another_class_is_asked_about_once_and_drawn_anew(page: Page) -> None:
    def reply(route: Route) -> None:
        dog = "label=dog" in route.request.url
        answer(route, explanation(label="dog" if dog else "cat", peak=(3, 3) if dog else (0, 0)))

    requests = answering(page, reply)
    add(page, ("a.png", picture()))
    dog, cat = page.get_by_role("button", name="dog, 6.0 %"), page.get_by_role("button", name="cat, 90.0 %")
    expect(cat).to_have_attribute("aria-pressed", "true")
    dog.click()
    expect(page.locator("#where")).to_have_text("What speaks most for dog is in the lower right.")
    expect(dog).to_have_attribute("aria-pressed", "true")
    expect(cat).to_have_attribute("aria-pressed", "false")
    assert brightness(page, 0.75, 0.88) > 2 * brightness(page, 0.1, 0.1)
    assert requests[1].url.endswith("/explain?top_k=10&label=dog")
    expect(verdict(page)).to_have_text("Cat")
    cat.click()
    expect(page.locator("#where")).to_contain_text("upper left")
    assert len(requests) == 2


def test_a_class_that_nothing_speaks_for(page: Page) -> None:
    body = explanation()
    for view in body["views"]:
        view["map"] = [[-1.0] * 4] * 4
    answering(page, lambda route: answer(route, body))
    add(page, ("a.png", picture()))
    expect(page.locator("#where")).to_have_text("Nothing in it speaks for cat.")


def test_what_the_network_saw_is_shown_enlarged_and_each_view_can_be_looked_at(page: Page) -> None:
    answering(page)
    add(page, ("a.png", picture(size=(400, 300))))
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


def test_four_at_a_time_and_hundreds_in_all(page: Page) -> None:
    held: list[Route] = []
    holding = True
    requests = answering(page, lambda route: held.append(route) if holding else answer(route))
    data = picture()
    add(page, *[(f"{number:03}.png", data) for number in range(200)])
    expect(page.locator("#tiles li")).to_have_count(200)
    for answered in range(3):
        while len(requests) < 4 + answered:
            page.wait_for_timeout(10)
        page.wait_for_timeout(100)
        assert len(requests) == 4 + answered
        answer(held.pop(0))
    holding = False
    for route in held:
        answer(route)
    expect(page.locator("#count")).to_have_text("200 pictures")
    expect(page.locator("#live")).to_have_text("All 200 pictures are done.")
    expect(page.locator("#stage img")).to_have_count(1)  # only that one is there in full
    assert page.locator("#tiles img").first.evaluate("e => [e.loading, e.src.slice(0, 5)]") == ["lazy", "blob:"]


def three(page: Page) -> None:
    """Three pictures, and one that is none."""
    told = {
        b"0": explanation([("truck", 0.7)], in_distribution=0.5),
        b"1": explanation([("bird", 0.6)], in_distribution=0.9),
        b"2": explanation([("cat", 0.99)], in_distribution=0.1, accepted=False),
    }

    def reply(route: Route) -> None:
        body = told.get(route.request.post_data_buffer or b"")
        if body:
            answer(route, body)
        else:
            problem = {"type": "urn:tenfold:unsupported-picture", "title": "Not a picture", "detail": "send a picture"}
            route.fulfill(status=415, body=json.dumps(problem), content_type="application/problem+json")

    answering(page, reply)
    add(page, ("=cmd|'x'!A1.png", b"0"), ('b, "q".png', b"1"), ("c.png", b"2"), ("d.txt", b"3"))
    expect(page.locator("#count")).to_have_text("4 pictures, 1 without an answer")


def labels(page: Page) -> list[str]:
    return page.locator("#tiles b").all_text_contents()


def test_the_gallery_is_sorted_and_filtered(page: Page) -> None:
    three(page)
    truck, bird, other, failed = "truck", "bird", "none of ten", "Not a picture"
    assert labels(page) == [truck, bird, other, failed]
    for order, expected in {
        "by class": [bird, other, truck, failed],
        "surest first": [other, truck, bird, failed],
        "most familiar first": [bird, truck, other, failed],
        "as added": [truck, bird, other, failed],
    }.items():
        page.get_by_role("combobox", name="Order").select_option(order)
        assert labels(page) == expected, order
    for kind, expected in {
        "the sure ones": [truck, bird],
        "the unsure ones": [],
        "none of the classes": [other],
        "without an answer": [failed],
        "all": [truck, bird, other, failed],
    }.items():
        page.get_by_role("combobox", name="Show").select_option(kind)
        assert labels(page) == expected, kind
        if len(expected) < 4:
            expect(page.locator("#count")).to_contain_text(f"{len(expected)} shown")


def test_the_results_as_csv(page: Page) -> None:
    three(page)
    page.get_by_role("combobox", name="Order").select_option("surest first")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "tenfold.csv"
    data = Path(download.value.path()).read_bytes()
    assert data.count(b"\r\n") == data.count(b"\n") == 5
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))
    assert [row["name"] for row in rows] == ["c.png", "'=cmd|'x'!A1.png", 'b, "q".png', "d.txt"]
    assert list(rows[0])[-10:] == LABELS
    assert rows[2] | {"label": "bird", "probability": "0.6", "in_distribution": "0.9", "accepted": "true"} == rows[2]
    assert rows[2]["bird"] == "0.6"
    assert rows[2] | {"width": "400", "height": "300", "model": CARD.name, "version": CARD.version} == rows[2]
    assert (rows[0]["accepted"], rows[0]["problem"]) == ("false", "")
    assert (rows[3]["label"], rows[3]["problem"]) == ("", "send a picture")


@pytest.mark.parametrize("name", ["cat.png", """it's; a "cat", $(touch x) `y` \\ -é.png"""], ids=["plain", "nasty"])
def test_the_curl_command_runs(page: Page, running: Running, tmp_path: Path, name: str) -> None:
    if not (shutil.which("bash") and shutil.which("curl")):
        pytest.skip("no bash and curl")
    page.route(FILE, lambda route: route.fulfill(status=404))  # so that what is copied is /predict
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    (tmp_path / name).write_bytes(picture())
    page.set_input_files("#files", tmp_path / name)
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    command = page.evaluate("navigator.clipboard.readText()")
    assert page.locator("#command").inner_text() == command
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, check=True)
    result = json.loads(done.stdout)["results"][0]
    expect(page.locator(".ranking li").first).to_contain_text(result["top_k"][0]["label"])
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_removing_one_and_all(page: Page) -> None:
    answering(page)
    add(page, ("a.png", picture()), ("b.png", picture()), ("c.png", picture()))
    expect(page.locator("#count")).to_have_text("3 pictures")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#name")).to_have_text("b.png")
    expect(page.locator("#tiles li")).to_have_count(2)
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator("#detail")).to_be_hidden()
    expect(page.locator("#gallery")).to_be_hidden()
    expect(page.get_by_role("button", name="Choose pictures")).to_be_focused()
