"""Uploads of large photos over a slow network."""

import io
import os

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.page.browsing import EXPLAIN, add, explanation, headline, mock_explain, succeed, wait_until

FAST_4G = 169_000  # bytes per second that a phone sends


@pytest.fixture(scope="module")
def photo() -> bytes:
    """A JPEG of 2,400 x 1,600 pixels with noise and an orientation, about 2 MB."""
    pixels = np.random.default_rng(0).integers(0, 60, (1600, 2400, 3), np.uint8)
    pixels[:, :1200] += 150
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: it is shown with the light half at the top
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90, exif=exif)
    assert len(file.getvalue()) > 1_500_000
    return file.getvalue()


def sent(page: Page, *files: tuple[str, bytes]) -> list[bytes]:
    """Add files; returns the list of what the page sends, which grows."""
    bodies: list[bytes] = []

    def reply(route: Route) -> None:
        bodies.append(route.request.post_data_buffer or b"")
        succeed(route)

    mock_explain(page, reply)
    add(page, *files, kind="image/jpeg")
    return bodies


def test_a_large_photo_is_sent_as_a_smaller_copy_and_the_original_on_request(page: Page, photo: bytes) -> None:
    bodies = sent(page, ("photo.jpg", photo))
    expect(headline(page)).to_have_text("Cat")
    (body,) = bodies
    assert len(body) < len(photo) / 2
    copy = Image.open(io.BytesIO(body))
    assert (copy.format, copy.size) == ("JPEG", (683, 1024))
    pixels = np.asarray(copy.convert("L"), float)
    assert pixels[:400].mean() > pixels[-400:].mean() + 100, "upright"
    expect(page.locator("#size")).to_have_text("1600 \N{MULTIPLICATION SIGN} 2400")
    expect(page.locator("#result")).to_contain_text("Sent as a JPEG copy: ")
    page.get_by_role("button", name="Send the original").click()
    wait_until(page, lambda: len(bodies) == 2, "the second request")
    assert bodies[1] == photo
    expect(headline(page)).to_have_text("Cat")
    expect(page.get_by_role("button", name="Send the original")).to_have_count(0)


def test_a_file_that_a_copy_would_not_make_much_smaller_is_sent_itself(page: Page) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=60)
    assert len(file.getvalue()) > 300_000
    bodies = sent(page, ("noise.jpg", file.getvalue()))
    expect(headline(page)).to_have_text("Cat")
    assert bodies == [file.getvalue()]
    expect(page.get_by_role("button", name="Send the original")).to_have_count(0)


def test_large_files_are_sent_one_after_the_other(page: Page) -> None:
    held: list[Route] = []
    requests = mock_explain(page, held.append)
    # Not images for the browser, so there is no copy of them.
    add(page, *[(f"{number}.heic", os.urandom(800_000)) for number in range(3)], kind="image/heic")
    for count in (1, 2, 3):
        wait_until(page, lambda: len(requests) == count, "the next request")  # noqa: B023
        page.wait_for_timeout(200)
        assert len(requests) == count
        succeed(held[-1], explanation())
    expect(page.locator("#count")).to_have_text("3 images")


def test_the_progress_of_a_slow_upload_is_shown(own_page: Page, photo: bytes) -> None:
    network = own_page.context.new_cdp_session(own_page)
    network.send("Network.enable")
    limits = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": FAST_4G}
    network.send("Network.emulateNetworkConditions", limits)
    add(own_page, ("photo.jpg", photo), kind="image/jpeg")
    with own_page.expect_response(EXPLAIN) as response:  # the copy
        pass
    took = response.value.request.timing
    assert took["responseStart"] - took["requestStart"] < 10_000
    own_page.get_by_role("button", name="Send the original").click()
    expect(headline(own_page)).to_have_text("Uploading …")
    expect(own_page.locator(".lead")).to_contain_text(" MB")
    first = own_page.locator("#upload").evaluate("e => e.value")
    wait_until(own_page, lambda: own_page.locator("#upload").evaluate("e => e.value") > first, "it progresses")
    own_page.locator("#result").get_by_role("button", name="Cancel").click()
    expect(headline(own_page)).to_have_text("Cancelled")
