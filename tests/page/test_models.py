"""The chooser of the page, with several models."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.app.fakes import CARD, FakeEngine, fake_classifier, image_file
from tests.app.running import Running, serving
from tests.page.browsing import add, fail, headline, mock_explain, show_curl, succeed, visiting, wait_until
from tests.page.test_layout import check

OTHER = FakeEngine()
# createImageBitmap waits for a call of finishCopies().
_DELAY_COPIES = """() => {
    const { decode } = HTMLImageElement.prototype;
    const finished = new Promise((resolve) => { window.finishCopies = resolve; });
    HTMLImageElement.prototype.decode = function () { return finished.then(() => decode.call(this)); };
}"""


@pytest.fixture(scope="module")
def both() -> Iterator[Running]:
    """A service with two models."""
    with serving(others={"b": lambda: fake_classifier(OTHER, "b")}) as running:
        yield running


@pytest.fixture
def chooser(browser: Browser, both: Running) -> Iterator[Page]:
    """The page of this service."""
    OTHER.has_maps = True
    with visiting(browser, f"{both.client.base_url}/") as page:
        yield page


def test_there_is_no_chooser_for_one_model(page: Page) -> None:
    expect(page.locator("#chip")).to_have_text(f"{CARD.name}{CARD.version}")
    expect(page.locator("#models option")).to_have_count(1)
    expect(page.locator("#models")).to_be_hidden()


def test_another_model_classifies_all_images_again(chooser: Page, both: Running) -> None:
    expect(chooser.locator("#models")).to_have_value(CARD.name)
    add(chooser, ("a.png", image_file(1)), ("b.png", image_file(2)))
    expect(chooser.locator("#count")).to_have_text("2 images")
    expect(chooser.locator(".ranking")).to_be_visible()
    seen, other = both.engine.views, OTHER.views
    chooser.locator("#models").select_option("b")
    expect(chooser.locator("#chip")).to_have_text(f"b{fake_classifier(OTHER, 'b').card.version}")
    expect(chooser.locator("#count")).to_have_text("2 images")
    expect(chooser.locator(".ranking")).to_be_visible()
    expect(chooser.locator("#view-list img")).to_have_count(1)
    assert (both.engine.views, OTHER.views) == (seen, other + 2)
    show_curl(chooser)
    expect(chooser.locator("#command")).to_contain_text("/predict?top_k=10&model=b")


def test_a_copy_that_is_made_while_the_model_changes_replaces_the_request_with_the_original(chooser: Page) -> None:
    mock_explain(chooser, lambda route: fail(route, 413, "body-too-large", "the image is too large"))
    add(chooser, ("a.png", image_file(1)))
    expect(headline(chooser)).to_have_text("A title")
    chooser.evaluate(_DELAY_COPIES)
    chooser.get_by_role("button", name="Send a smaller copy").click()
    pending: list[Route] = []
    mock_explain(chooser, pending.append)
    chooser.locator("#models").select_option("b")
    wait_until(chooser, lambda: len(pending) == 1, "the original is sent to the other model")
    chooser.evaluate("finishCopies()")
    wait_until(chooser, lambda: len(pending) == 2, "the copy is sent")
    original, copy = (route.request for route in pending)
    wait_until(chooser, lambda: original.failure is not None, "the request with the original is aborted")
    assert copy.failure is None
    assert "model=b" in copy.url
    succeed(pending[1])
    expect(headline(chooser)).to_have_text("Cat")


def test_a_model_without_maps_has_results_and_no_heat_maps(chooser: Page) -> None:
    OTHER.has_maps = False
    add(chooser, ("a.png", image_file(1)))
    expect(chooser.locator("#heat-bar")).to_be_visible()
    chooser.locator("#models").select_option("b")
    expect(chooser.locator("#plain")).to_be_visible()
    expect(chooser.locator(".ranking")).to_be_visible()
    expect(chooser.locator("#heat-bar")).to_be_hidden()
    chooser.locator("#models").select_option(CARD.name)
    expect(chooser.locator("#plain")).to_be_hidden()
    expect(chooser.locator("#heat-bar")).to_be_visible()


@pytest.mark.parametrize("width", [1280, 360])
def test_the_chooser_is_accessible_and_fits(chooser: Page, width: int) -> None:
    chooser.set_viewport_size({"width": width, "height": 800})
    expect(chooser.locator("#models")).to_be_visible()
    check(chooser, width)
    add(chooser, ("a.png", image_file(1)))
    expect(chooser.locator(".ranking")).to_be_visible()
    check(chooser, width)
