"""What the page does without a result, or before it: it shows the state, waits, and retries on its own."""

import threading
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from model import Classifier
from tests.app.fakes import CARD, FakeEngine, fake_classifier, image_file
from tests.app.running import Running, serving
from tests.page.browsing import (
    EXPLAIN,
    add,
    explanation,
    fail,
    headline,
    mock_explain,
    pause_clock,
    show_curl,
    succeed,
    visiting,
    wait_until,
)  # fmt: skip


def url(service: Running) -> str:
    return f"{service.client.base_url}/"


def without_explain(page: Page) -> None:
    """Hide /explain from the page."""
    page.route(EXPLAIN, lambda route: route.fulfill(status=404))


def test_a_slow_request_shows_the_elapsed_time_and_can_be_cancelled(own_page: Page) -> None:
    pending: list[Route] = []
    pause_clock(own_page)
    mock_explain(own_page, pending.append)
    add(own_page, ("a.png", image_file()))
    expect(headline(own_page)).to_have_text("Classifying …")
    assert own_page.locator(".lead").inner_text() == ""
    own_page.clock.run_for(6_000)
    expect(own_page.locator(".lead")).to_have_text("No response after 6 s.")
    own_page.locator("#result").get_by_role("button", name="Cancel").click()
    expect(headline(own_page)).to_have_text("Cancelled")
    expect(headline(own_page)).to_be_focused()
    mock_explain(own_page)
    own_page.get_by_role("button", name="Try again").click()
    expect(headline(own_page)).to_have_text("Cat")


def test_at_capacity_it_retries_after_the_time_of_retry_after(own_page: Page) -> None:
    def reply(route: Route) -> None:
        if len(requests) < 3:
            fail(route, 503, "queue-full", "256 images are in progress", retry_after=2)
        else:
            succeed(route)

    pause_clock(own_page)
    requests = mock_explain(own_page, reply)
    add(own_page, ("a.png", image_file()))
    banner = own_page.locator("#banner")
    expect(banner).to_contain_text("The service is at capacity. Retrying in 2 s.")
    expect(banner).to_contain_text("256 images are in progress.")
    expect(headline(own_page)).to_have_text("Waiting for the service")
    expect(own_page.locator("#live")).to_have_text("The service is at capacity.")
    for sent in (1, 2):
        own_page.clock.run_for(1_000)
        expect(banner).to_contain_text("Retrying in 1 s.")
        own_page.clock.run_for(990)
        assert len(requests) == sent
        own_page.clock.run_for(10)
        wait_until(own_page, lambda: len(requests) > sent, "the next request")  # noqa: B023
        if sent == 1:
            expect(banner).to_contain_text("Retrying in 2 s.")
    expect(headline(own_page)).to_have_text("Cat")
    expect(banner).to_be_hidden()


def test_no_request_is_sent_while_it_waits_and_the_wait_can_be_ended(page: Page) -> None:
    requests = mock_explain(page, lambda route: fail(route, 503, "queue-full", "full", retry_after=600))
    add(page, *[(f"{number}.png", image_file()) for number in range(6)])
    expect(page.locator("#banner")).to_contain_text("in 600 s")
    page.wait_for_timeout(300)
    assert len(requests) == 4  # these were in progress already
    page.get_by_role("button", name="Cancel waiting images").click()
    expect(page.locator("#count")).to_have_text("6 images, 6 failed")
    mock_explain(page)
    page.get_by_role("button", name="Try now").click()
    page.get_by_role("button", name="Try again").click()
    expect(headline(page)).to_have_text("Cat")
    expect(page.locator("#banner")).to_be_hidden()


def test_a_full_queue_of_the_real_service(browser: Browser) -> None:
    engine = FakeEngine()
    engine.block()
    with serving(engine, queue_size=1, max_files=1) as service, visiting(browser, url(service)) as page:
        without_explain(page)
        other = service.in_background(lambda: service.post(image_file()))
        service.wait_admitted(1)
        add(page, ("a.png", image_file()))
        expect(page.locator("#banner")).to_contain_text("at capacity")
        engine.release()
        expect(page.locator("#tiles b")).to_have_count(1)
        expect(page.locator(".ranking")).to_be_visible()
        assert other.result().status_code == 200


def test_it_waits_for_the_model_to_load(browser: Browser) -> None:
    engine = FakeEngine()
    loaded = threading.Event()

    def load() -> Classifier:
        assert loaded.wait(60)
        return fake_classifier(engine)

    with serving(engine, load=load, wait_ready=False) as service, visiting(browser, url(service)) as page:
        without_explain(page)
        expect(page.locator("#banner")).to_contain_text("The service is not ready.")
        add(page, ("a.png", image_file()))
        expect(headline(page)).to_have_text("Waiting for the service")
        loaded.set()
        expect(page.locator(".ranking")).to_be_visible()
        expect(page.locator("#chip")).to_have_text(f"{CARD.name}{CARD.version}")
        expect(page.locator("#banner")).to_be_hidden()


def test_it_waits_for_a_service_that_has_stopped(browser: Browser) -> None:
    with serving() as first:
        address, port = url(first), first.port
        with visiting(browser, address) as page:
            without_explain(page)
            expect(page.locator("#model")).to_be_visible()
            first.server.should_exit = True
            first.thread.join(20)
            add(page, ("a.png", image_file()))
            expect(page.locator("#banner")).to_contain_text("The service cannot be reached.")
            expect(headline(page)).to_have_text("Waiting for the service")
            with serving(port=port):
                expect(page.locator(".ranking")).to_be_visible()
                expect(page.locator("#banner")).to_be_hidden()


def test_it_continues_when_the_browser_is_online_again(own_page: Page) -> None:
    mock_explain(own_page)
    own_page.context.set_offline(True)
    own_page.unroute(EXPLAIN)
    add(own_page, ("a.png", image_file()))
    expect(own_page.locator("#banner")).to_contain_text("cannot be reached")
    mock_explain(own_page)
    own_page.context.set_offline(False)
    expect(headline(own_page)).to_have_text("Cat")


def test_a_request_fails_after_three_interruptions(page: Page) -> None:
    requests = mock_explain(page, lambda route: route.abort())
    add(page, ("a.png", image_file()))
    expect(headline(page)).to_have_text("Not sent")
    assert len(requests) == 3
    expect(page.locator("#banner")).to_be_hidden()


@pytest.mark.parametrize("status", [502, 504])
def test_it_waits_for_the_service_behind_a_proxy(page: Page, status: int) -> None:
    requests = mock_explain(page, lambda route: route.fulfill(status=status, body="<h1>Bad gateway</h1>"))
    add(page, ("a.png", image_file()))
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    mock_explain(page)
    expect(headline(page)).to_have_text("Cat")
    assert requests


def test_an_api_key_is_requested_and_sent_and_not_stored(browser: Browser) -> None:
    with serving(api_keys=("open-sesame",)) as service, visiting(browser, url(service)) as page:
        without_explain(page)
        expect(page.locator("#key-form")).to_be_visible()
        field = page.get_by_label("This service requires an API key.")
        expect(field).to_be_focused()
        add(page, ("a.png", image_file()))
        field.fill("wrong")
        page.keyboard.press("Enter")
        field = page.get_by_label("This key is not accepted. Enter another one.")
        expect(page.locator("#live")).to_have_text("This key is not accepted. Enter another one.")
        expect(field).to_be_focused()
        field.fill("open-sesame")
        with page.expect_request("**/predict?*") as posted:
            page.get_by_role("button", name="Use this key").click()
        assert posted.value.headers["x-api-key"] == "open-sesame"
        expect(page.locator(".ranking")).to_be_visible()
        expect(page.locator("#key-form")).to_be_hidden()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        show_curl(page)
        expect(page.locator("#command")).to_contain_text('-H "X-API-Key: $TENFOLD_API_KEY"')
        assert "sesame" not in page.content()


def bitmap() -> bytes:
    """An image that is large as BMP and small as JPEG."""
    return image_file(size=(400, 300), kind="BMP")


def test_an_image_that_is_too_large_can_be_reduced(browser: Browser) -> None:
    with serving(max_body_bytes=100_000, max_held_bytes=200_000) as service, visiting(browser, url(service)) as page:
        without_explain(page)
        add(page, ("large.bmp", bitmap()), kind="image/bmp")
        expect(headline(page)).to_have_text("The request is too large")
        expect(page.locator(".lead")).to_have_text("This file is over 100 kB.")
        assert service.engine.views == 0
        page.get_by_role("button", name="Send a smaller copy").click()
        expect(page.locator(".ranking")).to_be_visible()
        expect(page.locator("#result")).to_contain_text("Sent as a JPEG copy")


def test_an_image_that_the_browser_cannot_reduce(page: Page) -> None:
    mock_explain(page, lambda route: fail(route, 413, "picture-too-large", "too many pixels"))
    add(page, ("a.heic", b"not an image"), kind="image/heic")
    page.get_by_role("button", name="Send a smaller copy").click()
    expect(headline(page)).to_have_text("Not copied")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello", "not an image"),
        (b"%PDF-1.7\n", "PDF document"),
        (image_file()[:60], "damaged"),
        (b"", "empty"),
    ],
    ids=["no image", "PDF", "truncated", "empty"],
)
def test_errors_are_shown_as_the_service_words_them_and_short_on_the_tile(
    page: Page, running: Running, data: bytes, reason: str
) -> None:
    problem = running.post(data).json()
    without_explain(page)
    add(page, ("a.png", data), ("b.png", image_file()))
    expect(headline(page)).to_have_text(problem["title"])
    expect(page.locator(".lead")).to_contain_text(problem["detail"][1:])  # the first letter is capitalised
    expect(page.locator("#count")).to_have_text("2 images, 1 failed")
    expect(page.locator(".tile.failed b")).to_have_text(reason)


@pytest.mark.parametrize("status", [500, 504])
def test_a_failed_request_can_be_retried(page: Page, status: int) -> None:
    mock_explain(page, lambda route: fail(route, status, "internal-error", "report it with the request id abc"))
    add(page, ("a.png", image_file()))
    expect(page.locator(".lead")).to_have_text("Report it with the request id abc.")
    mock_explain(page)
    page.get_by_role("button", name="Try again").click()
    expect(headline(page)).to_have_text("Cat")


def test_the_result_stays_if_a_class_cannot_be_explained(page: Page) -> None:
    def reply(route: Route) -> None:
        if "label=" in route.request.url:
            fail(route, 504, "deadline-passed", "no result within 10 s")
        else:
            succeed(route)

    mock_explain(page, reply)
    add(page, ("a.png", image_file()))
    page.get_by_role("button", name="dog, 6.0%").click()
    expect(page.locator("#where")).to_have_text("There is no map for dog: no result within 10 s.")
    expect(headline(page)).to_have_text("Cat")


def test_without_explain_it_uses_predict(page: Page, running: Running) -> None:
    page.route(EXPLAIN, lambda route: route.fulfill(status=404))
    add(page, ("a.png", image_file()), ("b.png", image_file(1)))
    expect(page.locator("#count")).to_have_text("2 images")
    expect(page.locator("#plain")).to_have_text("This model has no heat maps.")
    best = running.post(image_file(), params={"top_k": 1}).json()["results"][0]["top_k"][0]["label"]
    expect(page.locator(".ranking li").first).to_contain_text(best)
    expect(page.locator(".ranking button")).to_have_count(0)
    expect(page.locator("#heat-bar")).to_be_hidden()


def test_a_format_that_the_browser_cannot_show_is_classified(page: Page) -> None:
    mock_explain(page)
    add(page, ("photo.heic", b"not an image"), ("b.png", image_file()), kind="image/heic")
    expect(headline(page)).to_have_text("Cat")
    expect(page.locator("#stage")).to_contain_text("This browser cannot show the image")
    expect(page.locator("#tiles li").first.locator(".no-thumb")).to_have_text("heic")
    expect(page.locator("#view-list img")).to_have_count(2)


def test_a_card_that_fails_to_load_can_be_reloaded(page: Page) -> None:
    page.route("**/model?*", lambda route: fail(route, 500, "internal-error", "report it"))
    page.reload()
    expect(page.locator("#banner")).to_contain_text("The model card cannot be loaded. Report it.")
    page.unroute("**/model?*")
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#model")).to_be_visible()
    expect(page.locator("#banner")).to_be_hidden()


@pytest.mark.parametrize("missing", [{}, {"confusion": None, "reliability": None}])
def test_missing_figures_are_omitted(page: Page, missing: dict[str, Any]) -> None:
    def reply(route: Route) -> None:
        card = route.fetch().json()
        for name in ("confusion", "reliability"):
            card["metrics"].pop(name, None)
        route.fulfill(json={**card, "metrics": {**card["metrics"], **missing}})

    page.route("**/model?*", reply)
    page.reload()
    expect(page.locator("#facts")).to_contain_text("10.0%")
    expect(page.locator("#gist")).to_contain_text("It is right on 10.0%")
    expect(page.locator("figure")).to_have_count(0)


def test_a_cancelled_image_stays_cancelled_if_the_service_cannot_be_reached(page: Page) -> None:
    pending: list[Route] = []

    def keep(route: Route) -> None:
        pending.append(route)

    page.route("**/livez", keep)
    mock_explain(page, lambda route: route.abort())
    add(page, ("a.png", image_file()))
    wait_until(page, lambda: bool(pending), "the page asks whether the service is alive")
    page.locator("#result").get_by_role("button", name="Cancel").click()
    expect(headline(page)).to_have_text("Cancelled")
    pending[0].abort()
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    expect(headline(page)).to_have_text("Cancelled")


def test_an_image_removed_in_progress_leaves_nothing(page: Page) -> None:
    pending: list[Route] = []
    mock_explain(page, pending.append)
    add(page, ("a.png", image_file()))
    expect(headline(page)).to_have_text("Classifying …")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#detail")).to_be_hidden()
    mock_explain(page, lambda route: succeed(route, explanation([("frog", 0.9)])))
    add(page, ("b.png", image_file()))
    expect(headline(page)).to_have_text("Frog")


@pytest.mark.parametrize(
    ("feedback", "images", "notice"),
    [
        (False, False, "It does not store them."),
        (True, False, "It stores the results and your corrections, but not the images."),
        (True, True, "It stores them, with the results and your corrections, to improve the model."),
    ],
    ids=["nothing", "results", "images"],
)
def test_the_page_says_what_is_stored(
    browser: Browser, tmp_path: Path, feedback: bool, images: bool, notice: str
) -> None:
    store = tmp_path / "feedback.sqlite" if feedback else None
    with (
        serving(feedback=store, feedback_images=images) as running,
        visiting(browser, f"{running.client.base_url}/") as page,
    ):
        expect(page.locator("#drop")).to_contain_text(notice)
        # It would store each frame.
        expect(page.get_by_role("button", name="Live camera")).to_be_visible(visible=not images)
