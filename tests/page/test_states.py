"""What the page does when there is no answer, or not yet: it says so, waits as it is told to, and goes on by itself."""

import threading
import time
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from model import Classifier
from tests.app.fakes import FakeEngine, fake_classifier, picture
from tests.app.running import Running, serving
from tests.page.browsing import FILE, add, answer, answering, explanation, refuse, verdict, visiting


def url(service: Running) -> str:
    return f"{service.client.base_url}/"


def without_explain(page: Page) -> None:
    """As if the service had only /predict."""
    page.route(FILE, lambda route: route.fulfill(status=404))


def test_a_slow_answer_is_spoken_of_and_can_be_given_up(page: Page) -> None:
    held: list[Route] = []
    page.clock.install()
    page.reload()
    answering(page, held.append)
    add(page, ("a.png", picture()))
    expect(verdict(page)).to_have_text("Looking …")
    assert page.locator(".lead").inner_text() == ""
    page.clock.run_for(6_000)
    expect(page.locator(".lead")).to_have_text("Still waiting for the answer: 6 s.")
    page.locator("#say").get_by_role("button", name="Cancel").click()
    expect(verdict(page)).to_have_text("Cancelled")
    expect(verdict(page)).to_be_focused()
    answering(page)
    page.get_by_role("button", name="Try again").click()
    expect(verdict(page)).to_have_text("Cat")


def test_at_capacity_it_waits_as_long_as_it_is_told_and_goes_on(page: Page) -> None:
    times: list[float] = []

    def reply(route: Route) -> None:
        times.append(time.monotonic())
        if len(times) < 3:
            refuse(route, 503, "queue-full", "256 pictures are under way", retry_after=2)
        else:
            answer(route)

    answering(page, reply)
    add(page, ("a.png", picture()))
    banner = page.locator("#banner")
    expect(banner).to_contain_text("The service is at capacity. Going on by itself in 2 s.")
    expect(banner).to_contain_text("256 pictures are under way.")
    expect(verdict(page)).to_have_text("Waiting for the service")
    expect(page.locator("#live")).to_have_text("The service is at capacity.")
    expect(banner).to_contain_text("Going on by itself in 1 s.")
    expect(verdict(page)).to_have_text("Cat")
    expect(banner).to_be_hidden()
    assert min(np.diff(times)) >= 1.99


def test_while_it_waits_nothing_is_sent_and_who_does_not_want_to_wait_need_not(page: Page) -> None:
    requests = answering(page, lambda route: refuse(route, 503, "queue-full", "full", retry_after=600))
    add(page, *[(f"{number}.png", picture()) for number in range(6)])
    expect(page.locator("#banner")).to_contain_text("in 600 s")
    page.wait_for_timeout(300)
    assert len(requests) == 4  # those that were under way
    page.get_by_role("button", name="Cancel what waits").click()
    expect(page.locator("#count")).to_have_text("6 pictures, 6 without an answer")
    answering(page)
    page.get_by_role("button", name="Try now").click()
    page.get_by_role("button", name="Try again").click()
    expect(verdict(page)).to_have_text("Cat")
    expect(page.locator("#banner")).to_be_hidden()


def test_a_full_queue_of_the_service_itself(browser: Browser) -> None:
    engine = FakeEngine()
    engine.block()
    with serving(engine, queue_size=1, max_files=1) as service, visiting(browser, url(service)) as page:
        without_explain(page)
        other = service.in_background(lambda: service.post(picture()))
        service.wait_admitted(1)
        add(page, ("a.png", picture()))
        expect(page.locator("#banner")).to_contain_text("at capacity")
        engine.release()
        expect(page.locator("#tiles b")).to_have_count(1)
        expect(page.locator(".ranking")).to_be_visible()
        assert other.result().status_code == 200


def test_a_model_that_loads_is_waited_for(browser: Browser) -> None:
    engine = FakeEngine()
    loaded = threading.Event()

    def load() -> Classifier:
        assert loaded.wait(60)
        return fake_classifier(engine)

    with serving(engine, load=load, wait_ready=False) as service, visiting(browser, url(service)) as page:
        without_explain(page)
        expect(page.locator("#banner")).to_contain_text("The service is not ready.")
        expect(page.locator("#banner")).to_contain_text("The model is loading: ask again in a second.")
        add(page, ("a.png", picture()))
        expect(verdict(page)).to_have_text("Waiting for the service")
        loaded.set()
        expect(page.locator(".ranking")).to_be_visible()
        expect(page.locator("#chip")).to_have_text("fake-net0123456789ab")
        expect(page.locator("#banner")).to_be_hidden()


def test_a_service_that_is_gone_is_waited_for(browser: Browser) -> None:
    with serving() as first:
        address, port = url(first), first.port
        with visiting(browser, address) as page:
            without_explain(page)
            expect(page.locator("#model")).to_be_visible()
            first.server.should_exit = True
            first.thread.join(20)
            add(page, ("a.png", picture()))
            expect(page.locator("#banner")).to_contain_text("The service cannot be reached.")
            expect(verdict(page)).to_have_text("Waiting for the service")
            with serving(port=port):
                page.get_by_role("button", name="Try now").click()
                expect(page.locator(".ranking")).to_be_visible()
                expect(page.locator("#banner")).to_be_hidden()


def test_offline_it_goes_on_when_the_network_is_back(page: Page) -> None:
    answering(page)
    page.context.set_offline(True)
    page.unroute(FILE)
    add(page, ("a.png", picture()))
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    answering(page)
    page.context.set_offline(False)
    expect(verdict(page)).to_have_text("Cat")


def test_a_request_that_breaks_off_again_and_again_is_given_up(page: Page) -> None:
    requests = answering(page, lambda route: route.abort())
    add(page, ("a.png", picture()))
    expect(verdict(page)).to_have_text("Not sent")
    assert len(requests) == 3
    expect(page.locator("#banner")).to_be_hidden()


@pytest.mark.parametrize("status", [502, 504])
def test_a_proxy_with_nobody_behind_it_is_waited_for(page: Page, status: int) -> None:
    requests = answering(page, lambda route: route.fulfill(status=status, body="<h1>Bad gateway</h1>"))
    add(page, ("a.png", picture()))
    expect(page.locator("#banner")).to_contain_text("cannot be reached")
    answering(page)
    expect(verdict(page)).to_have_text("Cat")
    assert requests


def test_a_key_is_asked_for_and_sent_and_kept_nowhere(browser: Browser) -> None:
    with serving(api_keys=("open-sesame",)) as service, visiting(browser, url(service)) as page:
        without_explain(page)
        expect(page.locator("#key-form")).to_be_visible()
        field = page.get_by_label("This service asks for an API key.")
        expect(field).to_be_focused()
        add(page, ("a.png", picture()))
        field.fill("wrong")
        page.keyboard.press("Enter")
        field = page.get_by_label("That key is not accepted. Which is right?")
        field.fill("open-sesame")
        with page.expect_request("**/predict?*") as posted:
            page.get_by_role("button", name="Use this key").click()
        assert posted.value.headers["x-api-key"] == "open-sesame"
        expect(page.locator(".ranking")).to_be_visible()
        expect(page.locator("#key-form")).to_be_hidden()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.locator("#command")).to_contain_text('-H "X-API-Key: $TENFOLD_API_KEY"')
        assert "sesame" not in page.content()


def bitmap() -> bytes:
    """A smooth picture, large as BMP and small as JPEG."""
    return picture(size=(400, 300), kind="BMP")


def test_what_is_too_large_can_be_shrunk(browser: Browser) -> None:
    with serving(max_body_bytes=100_000, max_held_bytes=200_000) as service, visiting(browser, url(service)) as page:
        without_explain(page)
        add(page, ("large.bmp", bitmap()), kind="image/bmp")
        expect(verdict(page)).to_have_text("The request is too large")
        expect(page.locator(".lead")).to_contain_text("more than 100,000 bytes")
        assert service.engine.views == 0
        page.get_by_role("button", name="Send a smaller copy").click()
        expect(page.locator(".ranking")).to_be_visible()
        expect(page.get_by_role("list", name="Warnings")).to_contain_text("This is the answer for a smaller copy.")


def test_what_is_too_large_and_cannot_be_opened_here(page: Page) -> None:
    answering(page, lambda route: refuse(route, 413, "picture-too-large", "too many pixels"))
    add(page, ("a.heic", b"no picture"), kind="image/heic")
    page.get_by_role("button", name="Send a smaller copy").click()
    expect(verdict(page)).to_have_text("Not shrunk")


@pytest.mark.parametrize(
    ("data", "heading", "detail"),
    [
        (b"hello", "Not a picture format that is accepted", "JPEG"),
        (picture()[:60], "The picture is damaged", "send"),
        (b"", "The upload holds no picture", "empty"),
    ],
)
def test_what_the_service_refuses_is_told_in_its_own_words(page: Page, data: bytes, heading: str, detail: str) -> None:
    without_explain(page)
    add(page, ("a.png", data), ("b.png", picture()))
    expect(verdict(page)).to_have_text(heading)
    expect(page.locator(".lead")).to_contain_text(detail)
    expect(page.locator("#count")).to_have_text("2 pictures, 1 without an answer")  # the other has one


@pytest.mark.parametrize("status", [500, 504])
def test_a_failure_can_be_tried_again(page: Page, status: int) -> None:
    answering(page, lambda route: refuse(route, status, "internal-error", "report it with the request id abc"))
    add(page, ("a.png", picture()))
    expect(page.locator(".lead")).to_have_text("Report it with the request id abc.")
    answering(page)
    page.get_by_role("button", name="Try again").click()
    expect(verdict(page)).to_have_text("Cat")


def test_a_class_that_cannot_be_explained_is_told_and_the_answer_stays(page: Page) -> None:
    def reply(route: Route) -> None:
        if "label=" in route.request.url:
            refuse(route, 504, "deadline-passed", "no answer within 10 s")
        else:
            answer(route)

    answering(page, reply)
    add(page, ("a.png", picture()))
    page.get_by_role("button", name="dog, 6.0 %").click()
    expect(page.locator("#where")).to_have_text("There is no map for dog: no answer within 10 s.")
    expect(verdict(page)).to_have_text("Cat")


def test_without_explain_the_answers_are_those_of_predict(page: Page, running: Running) -> None:
    page.route(FILE, lambda route: route.fulfill(status=404))
    add(page, ("a.png", picture()), ("b.png", picture(1)))
    expect(page.locator("#count")).to_have_text("2 pictures")
    expect(page.locator("#plain")).to_contain_text("no /explain")
    best = running.post(picture(), params={"top_k": 1}).json()["results"][0]["top_k"][0]["label"]
    expect(page.locator(".ranking li").first).to_contain_text(best)
    expect(page.locator(".ranking button")).to_have_count(0)
    expect(page.locator("#heat-bar")).to_be_hidden()


def test_a_format_that_the_browser_cannot_show_is_classified_all_the_same(page: Page) -> None:
    answering(page)
    add(page, ("photo.heic", b"no picture"), ("b.png", picture()), kind="image/heic")
    expect(verdict(page)).to_have_text("Cat")
    expect(page.locator("#stage")).to_contain_text("This browser cannot show the picture")
    expect(page.locator("#tiles li").first.locator(".no-thumb")).to_have_text("heic")
    expect(page.locator("#view-list img")).to_have_count(2)


def test_a_card_that_cannot_be_had_is_asked_for_again(page: Page) -> None:
    page.route("**/model", lambda route: refuse(route, 500, "internal-error", "report it"))
    page.reload()
    expect(page.locator("#banner")).to_contain_text("The service does not tell about its model. Report it.")
    page.unroute("**/model")
    page.get_by_role("button", name="Try now").click()
    expect(page.locator("#model")).to_be_visible()
    expect(page.locator("#banner")).to_be_hidden()


@pytest.mark.parametrize("missing", [{}, {"confusion": None, "reliability": None}])
def test_figures_that_the_card_lacks_are_left_out(page: Page, missing: dict[str, Any]) -> None:
    def reply(route: Route) -> None:
        card = route.fetch().json()
        for name in ("confusion", "reliability"):
            card["metrics"].pop(name, None)
        route.fulfill(json={**card, "metrics": {**card["metrics"], **missing}})

    page.route("**/model", reply)
    page.reload()
    expect(page.locator("#facts")).to_contain_text("10.0 %")
    expect(page.locator("figure")).to_have_count(0)


def test_nothing_is_kept_of_a_picture_that_was_removed_while_under_way(page: Page) -> None:
    held: list[Route] = []
    answering(page, held.append)
    add(page, ("a.png", picture()))
    expect(verdict(page)).to_have_text("Looking …")
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#detail")).to_be_hidden()
    answering(page, lambda route: answer(route, explanation([("frog", 0.9)])))
    add(page, ("b.png", picture()))
    expect(verdict(page)).to_have_text("Frog")
