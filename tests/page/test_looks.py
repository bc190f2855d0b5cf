"""What everybody can use: by axe-core, in both themes, on a phone and on a desk; and the figures of the card."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from tests.app.fakes import LABELS, picture
from tests.app.running import Running
from tests.page.browsing import add, answer, answering, explanation, refuse, visiting

CONFUSION = [[90 if i == j else (i + j) % 3 for j in range(10)] for i in range(10)]
RELIABILITY = [
    {"confidence": 0.5, "accuracy": 0.4, "pictures": 20},
    {"confidence": 0.99, "accuracy": 0.98, "pictures": 1000},
]


def with_figures(page: Page) -> None:
    """A card with the figures."""

    def reply(route: Route) -> None:
        card = route.fetch().json()
        route.fulfill(json={**card, "metrics": {**card["metrics"], "confusion": CONFUSION, "reliability": RELIABILITY}})

    page.route("**/model", reply)
    page.reload()
    expect(page.locator("#model")).to_be_visible()


def check(page: Page, width: int) -> None:
    """That axe-core finds nothing, and nothing has to be scrolled to sideways."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_and_nothing_is_wider_than_the_window(
    browser: Browser, running: Running, theme: Any, width: int
) -> None:
    def reply(route: Route) -> None:
        data = route.request.post_data_buffer
        if data == b"large":
            refuse(route, 413, "body-too-large", "the request has more than 20,000,000 bytes")
        elif data == b"late":
            refuse(route, 503, "queue-full", "256 pictures are under way", retry_after=60)
        elif data == b"other":
            answer(route, explanation(accepted=False, in_distribution=0.1))
        else:
            answer(route, explanation(warnings=["upscaled from 8x8"]))

    options = {"viewport": {"width": width, "height": 844}, "color_scheme": theme, "reduced_motion": "reduce"}
    with visiting(browser, f"{running.client.base_url}/", **options) as page:
        with_figures(page)
        answering(page, reply)
        name = f"{'a-long-name' * 12}.png"
        add(page, (name, picture(size=(400, 300))), ("b.txt", b"large"), ("c.png", b"other"))
        expect(page.locator("#count")).to_have_text("3 pictures, 1 without an answer")
        page.get_by_role("button", name="Copy as curl").click()
        page.locator("summary").click()
        expect(page.locator("#view-list img")).to_have_count(2)
        check(page, width)  # answered, with the figures of the card
        add(page, ("d.png", b"late"))
        page.get_by_role("button", name="b.txt").click()
        expect(page.get_by_role("button", name="Try again")).to_be_visible()
        expect(page.locator("#banner")).to_be_visible()
        check(page, width)  # refused, and waiting
        page.route("**/model", lambda route: refuse(route, 401, "unauthorized", "send a key"))
        page.reload()
        expect(page.locator("#key-form")).to_be_visible()
        check(page, width)  # empty, and asking for a key


def test_the_themes_differ(browser: Browser, running: Running) -> None:
    colours = set()
    for theme in ("light", "dark"):
        with visiting(browser, f"{running.client.base_url}/", color_scheme=theme) as page:
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == {"rgb(250, 248, 245)", "rgb(20, 18, 16)"}


def test_a_phone_is_offered_its_camera(browser: Browser, running: Running) -> None:
    address = f"{running.client.base_url}/"
    with visiting(browser, address) as page:
        expect(page.get_by_role("button", name="Take a photo")).to_be_hidden()
    with visiting(browser, address, is_mobile=True, has_touch=True, viewport={"width": 390, "height": 844}) as page:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take a photo").tap()
        assert chooser.value.element.get_attribute("capture") == "environment"


def test_who_asked_for_less_motion_gets_none(browser: Browser, running: Running) -> None:
    moving = {}
    for motion in ("no-preference", "reduce"):
        with visiting(browser, f"{running.client.base_url}/", reduced_motion=motion) as page:
            answering(page, lambda route: None)
            add(page, ("a.png", picture()))
            moving[motion] = page.locator(".progress").evaluate("e => getComputedStyle(e).animationName")
    assert moving == {"no-preference": "slide", "reduce": "none"}


def test_the_figures_of_the_card(page: Page) -> None:
    with_figures(page)
    table = page.locator("table.confusion")
    expect(table.locator("thead th")).to_have_text(["true class", *LABELS])
    expect(table.locator("tbody tr")).to_have_count(10)
    expect(table.locator("tbody tr").nth(3).locator("th, td")).to_have_text(["cat", *map(str, CONFUSION[3])])
    bars = page.locator("svg rect")
    heights = bars.evaluate_all("all => all.map((e) => e.height.baseVal.value)")
    assert heights[0] / heights[1] == pytest.approx(0.4 / 0.98, abs=0.001)
    places = bars.evaluate_all("all => all.map((e) => e.x.baseVal.value)")
    assert (places[1] - places[0]) / bars.first.evaluate("e => e.width.baseVal.value + 2") == pytest.approx(7)
    page.get_by_text("As a table").click()
    expect(page.locator("details tbody tr").first.locator("td")).to_have_text(["50.0 %", "40.0 %", "20"])
    expect(page.locator("#facts")).to_contain_text("10.0 %")


def test_it_works_behind_a_prefix(browser: Browser, running: Running) -> None:
    prefix = f"{running.client.base_url}/tools/tenfold/"

    with browser.new_context() as context:
        page = context.new_page()

        def forward(route: Route) -> None:
            stripped = route.request.url.replace("/tools/tenfold/", "/")
            route.fulfill(response=route.fetch(url=stripped))

        page.route(f"{prefix}**", forward)
        page.goto(prefix)
        expect(page.locator("#chip")).to_contain_text("fake-net")
        answering(page)
        add(page, ("a.png", picture()))
        expect(page.locator("#verdict")).to_have_text("Cat")
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.locator("#command")).to_contain_text("/tools/tenfold/explain?top_k=10")
