"""Accessibility with axe-core, in both themes, on a phone and a desktop; and the figures of the model card."""

from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from model.training.calibrate import FEW_IMAGES
from tests.app.fakes import LABELS, image_file
from tests.app.running import Running
from tests.page.browsing import add, explanation, fail, mock_explain, show_curl, succeed, visiting

CONFUSION = [[90 if i == j else (i + j) % 3 for j in range(10)] for i in range(10)]
RELIABILITY = [
    {"confidence": 0.5, "accuracy": 0.4, "pictures": 20},
    {"confidence": 0.99, "accuracy": 0.98, "pictures": 1000},
]


def with_figures(page: Page, confusion: list[list[int]] = CONFUSION) -> None:
    """Reload with a card that has the figures."""

    def reply(route: Route) -> None:
        card = route.fetch().json()
        route.fulfill(json={**card, "metrics": {**card["metrics"], "confusion": confusion, "reliability": RELIABILITY}})

    page.route("**/model?*", reply)
    page.reload()
    page.get_by_text("Accuracy, limitations and figures").click()


def check(page: Page, width: int) -> None:
    """Assert that axe-core finds no violation and that the page does not scroll sideways."""
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize(
    ("theme", "width"),
    [
        ("light", 390),
        ("dark", 1280),
        pytest.param("dark", 390, marks=pytest.mark.slow),
        pytest.param("light", 1280, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_no_violation_and_nothing_overflows(
    browser: Browser, running: Running, theme: Any, width: int
) -> None:
    def reply(route: Route) -> None:
        data = route.request.post_data_buffer
        if data == b"large":
            fail(route, 413, "body-too-large", "the request has more than 20,000,000 bytes")
        elif data == b"late":
            fail(route, 503, "queue-full", "256 images are in progress", retry_after=60)
        elif data == b"other":
            succeed(route, explanation(verdict="other", in_distribution=0.1))
        else:
            succeed(route, explanation(warnings=["upscaled from 8x8"]))

    options = {"viewport": {"width": width, "height": 844}, "color_scheme": theme, "reduced_motion": "reduce"}
    with visiting(browser, f"{running.client.base_url}/", **options) as page:
        with_figures(page)
        mock_explain(page, reply)
        name = f"{'a-long-name' * 12}.png"
        add(page, (name, image_file(size=(400, 300))), ("b.txt", b"large"), ("c.png", b"other"))
        expect(page.locator("#count")).to_have_text("3 images, 1 failed")
        show_curl(page)
        page.get_by_text("As a table").click()
        expect(page.locator("#view-list img")).to_have_count(2)
        check(page, width)  # a result, and the figures of the card
        add(page, ("d.png", b"late"))
        page.get_by_role("button", name="b.txt").click()
        page.get_by_role("button", name="Show all").click()
        expect(page.get_by_role("button", name="Send a smaller copy")).to_be_visible()
        expect(page.locator("#banner")).to_be_visible()
        check(page, width)  # an error, the banner and all tiles
        page.route("**/model?*", lambda route: fail(route, 401, "unauthorized", "send a key"))
        page.reload()
        expect(page.locator("#key-form")).to_be_visible()
        check(page, width)  # empty, and the form for a key


def test_the_themes_differ(own_page: Page) -> None:
    colours = set()
    for theme in ("light", "dark"):
        own_page.emulate_media(color_scheme=theme)
        colours.add(own_page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours == {"rgb(250, 248, 245)", "rgb(20, 18, 16)"}


def test_a_phone_has_a_camera_button(browser: Browser, running: Running) -> None:
    address = f"{running.client.base_url}/"
    with visiting(browser, address, is_mobile=True, has_touch=True, viewport={"width": 390, "height": 844}) as page:
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Take a photo").tap()
        assert chooser.value.element.get_attribute("capture") == "environment"


def test_reduced_motion(own_page: Page) -> None:
    mock_explain(own_page, lambda route: None)
    add(own_page, ("a.png", image_file()))
    for motion, animation in (("no-preference", "slide"), ("reduce", "none")):
        own_page.emulate_media(reduced_motion=motion)  # type: ignore[arg-type]
        expect(own_page.locator(".progress")).to_have_css("animation-name", animation)


def test_figures_of_the_card(page: Page) -> None:
    with_figures(page)
    table = page.locator("table.confusion")
    expect(table.locator("thead th")).to_have_text(["true class", *LABELS])
    expect(table.locator("tbody tr")).to_have_count(10)
    expect(table.locator("tbody tr").nth(3).locator("th, td")).to_have_text(["cat", *map(str, CONFUSION[3])])
    bars = page.locator("svg rect")
    heights = bars.evaluate_all("all => all.map((e) => e.height.baseVal.value)")
    assert heights[0] / heights[1] == pytest.approx(0.4 / 0.98, abs=0.001)
    positions = bars.evaluate_all("all => all.map((e) => e.x.baseVal.value)")
    assert (positions[1] - positions[0]) / bars.first.evaluate("e => e.width.baseVal.value + 2") == pytest.approx(7)
    expect(page.locator("figure svg text").filter(has_text="Confidence")).to_be_visible()
    expect(page.locator("figure svg text").filter(has_text="Accuracy")).to_be_visible()
    page.get_by_text("As a table").click()
    expect(page.locator("#figures details tbody tr").first.locator("td")).to_have_text(["50.0%", "40.0%", "20"])
    expect(page.locator("#facts")).to_contain_text("10.0%")


def test_a_number_of_the_matrix_shows_its_mistakes(page: Page) -> None:
    mistakes = [
        {"image": 2405, "file": None, "label": "cat", "predicted": "dog", "probability": 0.998442},
        {"image": 0, "file": "a/b.png", "label": "cat", "predicted": "dog", "probability": 0.5},
    ]

    def reply(route: Route) -> None:
        card = route.fetch().json()
        more = {"confusion": CONFUSION, "mistakes": mistakes}
        route.fulfill(json={**card, "metrics": {**card["metrics"], **more}})

    page.route("**/model?*", reply)
    page.reload()
    page.get_by_text("Accuracy, limitations and figures").click()
    shown = page.locator("#mistakes")
    expect(page.locator('.confusion button[tabindex="0"]')).to_have_count(1)
    expect(page.get_by_role("button", name="cat taken for frog")).to_have_count(0)  # there is none
    page.get_by_role("button", name="cat taken for ship").click()
    expect(shown).to_contain_text("Cat taken for ship: 2 of 99 images. None of them is among the surest mistakes")
    page.get_by_role("button", name="cat taken for dog").press("Enter")
    expect(shown).to_contain_text("Cat taken for dog: 2 of 99 images. The surest mistakes of this model include these:")
    expect(shown.locator("li")).to_have_text(["Image 2405, 99.8% sure", "a/b.png, 50.0% sure"])


@pytest.mark.parametrize(
    ("images", "text"), [(FEW_IMAGES - 1, "Only 199 images were held out"), (0, "No images were"), (FEW_IMAGES, "")]
)
def test_few_held_out_images_are_a_warning(page: Page, images: int, text: str) -> None:
    def reply(route: Route) -> None:
        route.fulfill(json={**route.fetch().json(), "calibration": {"pictures": images}})

    page.route("**/model?*", reply)
    page.reload()
    expect(page.locator("#gist")).to_be_visible()
    warning = page.locator("#few")
    expect(warning).to_be_visible(visible=bool(text))
    expect(warning).to_contain_text(text)


# Pairs of elements of the printed page that overlap, none of which contains the other.
_OVERLAPS = """() => {
    const parts = document.querySelectorAll("h2, h3, p, img, figure, table, svg, .row, .tile, dl > div, #stage");
    const visible = [...parts].filter((part) => part.checkVisibility());
    const boxes = visible.map((part) => [part, part.getBoundingClientRect()]);
    const nested = (a, b) => a.contains(b) || b.contains(a) || (a.closest("#stage") && b.closest("#stage"));
    const overlap = ([a, p], [b, q]) => !nested(a, b)
        && p.left + 1 < q.right && q.left + 1 < p.right && p.top + 1 < q.bottom && q.top + 1 < p.bottom;
    const after = (one, i) => boxes.slice(i + 1).filter((other) => overlap(one, other));
    const found = boxes.flatMap((one, i) => after(one, i).map((other) => [one, other]));
    return found.map((pair) => pair.map(([part]) => part.outerHTML));
}"""


@pytest.mark.parametrize("width", [718, 1040])  # A4 upright and across, without margins
def test_the_printed_page_has_the_result_and_nothing_overlaps(own_page: Page, width: int) -> None:
    with_figures(own_page)
    mock_explain(own_page)
    files = [(f"{number}.png", image_file(size=(400, 300))) for number in range(20)]
    add(own_page, *files)
    expect(own_page.locator("#count")).to_have_text("20 images")
    own_page.set_viewport_size({"width": width, "height": 1000})
    own_page.emulate_media(media="print", color_scheme="dark")
    assert own_page.evaluate(_OVERLAPS) == []
    assert own_page.evaluate("document.documentElement.scrollWidth") <= width
    for part in ("#headline", "#stage canvas", ".row >> nth=0", ".confusion", "figure svg", ".tile >> nth=19"):
        expect(own_page.locator(part)).to_be_visible()
    for part in ("#drop", "#question", "#divider", "#steps", ".options", "nav"):
        expect(own_page.locator(part)).to_be_hidden()
    assert own_page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(250, 248, 245)", "light"


_CONTRASTS = """cells => {
    const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const luminance = (colour) => {
        context.fillStyle = colour;
        context.fillRect(0, 0, 1, 1);
        const linear = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
            const share = value / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    return cells.map((cell) => {
        const {color, backgroundColor} = getComputedStyle(cell);
        const [dark, light] = [luminance(color), luminance(backgroundColor)].sort((a, b) => a - b);
        return (light + 0.05) / (dark + 0.05);
    });
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_number_of_the_matrix_has_enough_contrast(own_page: Page, theme: Any) -> None:
    # From no errors to only errors, so that all strengths occur.
    rows = [[(i * 10 + j) % 100 if i != j else 10 * i for j in range(10)] for i in range(10)]
    own_page.emulate_media(color_scheme=theme)
    with_figures(own_page, rows)
    contrasts = own_page.locator(".confusion td").evaluate_all(_CONTRASTS)
    assert len(contrasts) == 100
    assert min(contrasts) >= 4.5


def test_bars_legends_and_matrix_remain_with_forced_colours(own_page: Page) -> None:
    own_page.emulate_media(forced_colors="active")
    with_figures(own_page)
    mock_explain(own_page)
    add(own_page, ("a.png", image_file(size=(400, 300))))
    expect(own_page.locator("#heat-bar")).to_be_visible()
    background = own_page.evaluate("getComputedStyle(document.body).backgroundColor")
    for part in (".ranking .track i", ".stack i", ".timing dt", ".confusion .right"):
        pseudo = "::before" if part.endswith("dt") else None
        colour = own_page.locator(part).first.evaluate(
            "(e, pseudo) => getComputedStyle(e, pseudo).backgroundColor", pseudo
        )
        assert colour not in {background, "rgba(0, 0, 0, 0)"}, part
    assert "gradient" in own_page.locator(".legend span").first.evaluate("e => getComputedStyle(e).backgroundImage")
    assert own_page.locator("rect").first.evaluate("e => getComputedStyle(e).fill") != background


def test_focus_rings_are_not_clipped(page: Page) -> None:
    mock_explain(page)
    add(page, ("a.png", image_file()), ("b.png", image_file()))
    expect(page.locator("#tiles li")).to_have_count(2)
    page.locator("#clear").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator(".tile").first).to_be_focused()
    style = page.locator(".tile").first.evaluate(
        "e => [e.matches(':focus-visible'), getComputedStyle(e).outlineOffset]"
    )
    assert style == [True, "-5px"]  # inside, because the list scrolls


def test_a_phone_has_a_hint_to_scroll_the_matrix(page: Page) -> None:
    with_figures(page)
    hint = page.get_by_text("Scroll the table sideways to see all classes.")
    expect(hint).to_be_hidden()
    page.set_viewport_size({"width": 390, "height": 844})
    try:
        expect(hint).to_be_visible()
        scrolls = page.locator(".scroll").evaluate("e => e.scrollWidth > e.clientWidth")
        assert scrolls
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})


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
        mock_explain(page)
        add(page, ("a.png", image_file()))
        expect(page.locator("#headline")).to_have_text("Cat")
        show_curl(page)
        expect(page.locator("#command")).to_contain_text("/tools/tenfold/predict?top_k=10")
