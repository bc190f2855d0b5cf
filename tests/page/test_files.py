"""Files that people have: folders, addresses, HEIC, a camera, and what is said of files that cannot be used."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, Route, expect

from tests.app.fakes import image_file
from tests.app.running import Running
from tests.page.browsing import (
    add,
    browsing_with_camera,
    explanation,
    fail,
    headline,
    mock_explain,
    succeed,
    visiting,
    wait_until,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of three images, two of them in other folders, and two other files."""
    (tmp_path / "photos" / "a" / "b").mkdir(parents=True)
    for name in ("1.png", "a/2.PNG", "a/b/3.jpg"):
        (tmp_path / "photos" / name).write_bytes(image_file())
    for name in ("notes.txt", "a/.DS_Store"):
        (tmp_path / "photos" / name).write_bytes(b"text")
    return tmp_path / "photos"


def three(page: Page) -> None:
    """Expect the three images of the folder."""
    expect(page.locator("#count")).to_have_text("3 images")
    names = page.locator(".tile").evaluate_all("all => all.map((tile) => tile.title)")
    assert sorted(names) == ["1.png", "2.PNG", "3.jpg"]
    expect(page.locator("#notice-text")).to_have_text("2 files of the folder are not images and were skipped.")


def test_a_folder_can_be_dropped(page: Page, folder: Path) -> None:
    mock_explain(page)
    devtools = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 300, "data": data})
    three(page)


def test_a_folder_can_be_chosen(page: Page, folder: Path) -> None:
    mock_explain(page)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose a folder").click()
    chooser.value.set_files(folder)
    three(page)


def test_a_folder_without_images(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"text")
    page.set_input_files("#folder", tmp_path)
    expect(page.locator("#notice-text")).to_have_text("There is no image in the folder.")
    expect(page.locator("#detail")).to_be_hidden()


_SEND_ADDRESS = """([event, format, text]) => {
    const data = new DataTransfer();
    data.setData(format, text);
    const options = {bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data};
    document.body.dispatchEvent(event === "paste" ? new ClipboardEvent(event, options) : new DragEvent(event, options));
}"""


@pytest.mark.parametrize(("event", "kind"), [("paste", "text/plain"), ("drop", "text/uri-list")])
def test_an_address_is_explained(page: Page, event: str, kind: str) -> None:
    requests = mock_explain(page)
    page.evaluate(_SEND_ADDRESS, [event, kind, "https://example.org/cat.jpg"])
    expect(page.locator("#notice")).to_contain_text("This page sends nothing to other sites")
    expect(page.locator("#live")).to_contain_text("Copy the image itself")
    assert not requests
    add(page, ("a.png", image_file()))
    expect(page.locator("#notice")).to_be_hidden()


def test_other_text_may_be_pasted(page: Page) -> None:
    page.evaluate(_SEND_ADDRESS, ["paste", "text/plain", "hello"])
    expect(page.locator("#notice")).to_be_hidden()


def test_a_jpeg_copy_of_what_only_the_browser_can_read(page: Page) -> None:
    def reply(route: Route) -> None:
        if (route.request.post_data_buffer or b"").startswith(b"\xff\xd8"):
            succeed(route)
        else:
            fail(route, 415, "unsupported-image", "a HEIC image is not accepted: convert it to JPEG")

    mock_explain(page, reply)
    add(page, ("photo.heic", image_file(size=(400, 300))), kind="image/heic")
    expect(headline(page)).to_have_text("Cat")
    expect(page.locator("#result")).to_contain_text("Sent as a JPEG copy")


@pytest.mark.parametrize(("status", "offered"), [(415, False), (422, False), (413, False), (500, True), (504, True)])
def test_try_again_is_offered_only_where_it_can_help(page: Page, status: int, offered: bool) -> None:
    mock_explain(page, lambda route: fail(route, status, "some-problem", "what to do"))
    add(page, ("a.heic", b"neither the service nor the browser can read it"))
    expect(headline(page)).to_have_text("A title")
    expect(page.locator(".no-thumb")).to_have_count(1)
    expect(page.get_by_role("button", name="Try again")).to_have_count(int(offered))


def test_a_file_over_the_limit(page: Page) -> None:
    text = "the request has more than 20,000,000 bytes: send fewer or smaller images"
    mock_explain(page, lambda route: fail(route, 413, "body-too-large", text))
    add(page, ("a.png", image_file()))
    expect(page.locator(".lead")).to_have_text("This file is over 20 MB.")
    expect(page.locator(".tile b")).to_have_text("too large")


def test_a_photo_from_the_camera_of_a_computer(browser: Browser, running: Running) -> None:
    url = f"{running.client.base_url}/"
    with browsing_with_camera(browser, allowed=True) as other, visiting(other, url) as page:
        requests = mock_explain(page)
        dialogue, video = page.locator("#webcam"), page.locator("#webcam-video")
        dialogue.evaluate("e => e.showModal()")
        before = page.get_by_role("button", name="Cancel").bounding_box()
        dialogue.evaluate("e => e.close()")
        page.get_by_role("button", name="Take a photo").click()
        wait_until(page, lambda: video.evaluate("e => e.videoWidth > 0"), "the camera has an image")
        now = page.get_by_role("button", name="Cancel").bounding_box()
        assert now == before, "the buttons do not move when the image arrives"
        page.get_by_role("button", name="Take the photo").click()
        expect(page.locator("#name")).to_have_text("photo.jpg")
        expect(headline(page)).to_have_text("Cat")
        assert (requests[0].post_data_buffer or b"").startswith(b"\xff\xd8")
        assert video.evaluate("e => e.srcObject === null")
        page.get_by_role("button", name="Take a photo").click()
        page.get_by_role("button", name="Cancel").click()
        expect(dialogue).to_be_hidden()
        assert len(requests) == 1


def test_the_camera_is_classified_live(browser: Browser, running: Running) -> None:
    url = f"{running.client.base_url}/"
    with browsing_with_camera(browser, allowed=True) as other, visiting(other, url) as page:
        frames: list[Image.Image] = []
        results = [explanation(), None, explanation(verdict="other", in_distribution=0.1)]
        shown = ["Cat", "Not classified", "Probably none of the ten things it knows"]

        def reply(route: Route) -> None:
            frames.append(Image.open(io.BytesIO(route.request.post_data_buffer or b"")))
            if body := results[0]:
                route.fulfill(json={"results": [body["result"]]})
            else:
                fail(route, 422, "unreadable-picture", "the image is damaged")

        page.route("**/predict?*", reply)
        page.get_by_role("button", name="Live camera").click()
        seen = page.locator("#seen")
        for text in shown:
            expect(page.locator("#seen-title")).to_have_text(text)
            if results[1:]:
                results.pop(0)
        assert {frame.format for frame in frames} == {"JPEG"}
        assert max(max(frame.size) for frame in frames) == 192
        mock_explain(page)
        page.get_by_role("button", name="Take the photo").click()
        expect(headline(page)).to_have_text("Cat")
        count = len(frames)
        page.wait_for_timeout(600)
        assert len(frames) <= count + 1, "the camera is off"
        assert page.locator("#webcam-video").evaluate("e => e.srcObject === null")
        page.unroute("**/predict?*")
        page.get_by_role("button", name="Live camera").click()  # with the real service
        expect(seen).not_to_contain_text("Looking")
        expect(seen).not_to_contain_text("Not classified")
        held: list[Route] = []
        page.route("**/predict?*", lambda route: held.append(route))  # noqa: PLW0108
        wait_until(page, lambda: bool(held), "the next frame")
        page.get_by_role("button", name="Cancel").click()
        wait_until(page, lambda: held[0].request.failure is not None, "the request with the frame is aborted")


def test_a_camera_that_may_not_be_used(browser: Browser, running: Running) -> None:
    url = f"{running.client.base_url}/"
    with browsing_with_camera(browser, allowed=False) as other, visiting(other, url) as page:
        page.get_by_role("button", name="Take a photo").click()
        expect(page.locator("#notice-text")).to_have_text("This page may not use the camera.")


def test_the_image_with_its_result_can_be_saved(page: Page) -> None:
    body: dict[str, Any] = explanation(peak=(0, 0))
    mock_explain(page, lambda route: succeed(route, body))
    add(page, ("tom.cat.png", image_file(size=(400, 300))))
    expect(page.locator("#where")).not_to_be_empty()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download the image with its result").click()
    assert download.value.suggested_filename == "tom.cat-tenfold.png"
    pixels = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    assert pixels.shape[0] > 320
    assert pixels.shape[1] == 400
    warmth = (pixels[..., 0] - pixels[..., 2])[:300]
    assert warmth[20:60, 40:110].mean() > warmth[230:290, 300:390].mean() + 30, "at the peak"
    assert pixels[300:].min() < 60  # text
