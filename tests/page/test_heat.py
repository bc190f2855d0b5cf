"""The heat map: its colours, its scale, where there is no view, and its controls."""

from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from model import MAX_VIEWS, heatmap, preprocess, view_weights
from tests.app.fakes import CARD, image_file
from tests.page.browsing import add, explanation, mock_explain, succeed


def test_the_colours_are_those_of_the_png(page: Page) -> None:
    script = """async () => {
        const { colourOf } = await import(new URL("static/heat.js", document.baseURI));
        return Array.from({ length: 256 }, (_, i) => colourOf(i / 255));
    }"""
    colours = np.array(page.evaluate(script))
    added, left = colours[:, :3] * colours[:, 3:], 1 - colours[:, 3:]
    np.testing.assert_allclose(left, heatmap._LEFT, atol=1e-6)
    np.testing.assert_allclose(added, heatmap._ADDED, atol=1e-3)


@pytest.mark.parametrize("size", [(400, 300), (90, 256)])
@pytest.mark.parametrize("views", [1, 2, MAX_VIEWS])
def test_the_map_is_that_of_the_png(page: Page, size: tuple[int, int], views: int) -> None:
    width, height = size
    image = preprocess(image_file(size=size), CARD.input, max_pixels=10**7, views=views)
    count = len(image.boxes)
    maps = np.random.default_rng(views).normal(size=(count, 4, 4)).astype(np.float32)
    parts = [
        {"box": box, "map": cells, "weight": weight}
        for box, cells, weight in zip(image.boxes, maps.tolist(), view_weights(count).tolist(), strict=True)
    ]
    script = """async ([views, width, height]) => {
        const { heatOf } = await import(new URL("static/heat.js", document.baseURI));
        const heat = heatOf(views, width, height);
        return { ...heat, values: [...heat.values], seen: null };
    }"""
    found = page.evaluate(script, [parts, width, height])
    values = np.reshape(found["values"], (found["height"], found["width"]))
    expected = heatmap._heat(image, maps, found["width"], found["height"])
    np.testing.assert_allclose(values / values.max(), expected / expected.max(), atol=1e-5)


def alpha(page: Page, x: float, y: float) -> list[int]:
    """Opacities of the canvas in a row of 20 pixels from a position given as fractions of the image."""
    found: list[int] = page.locator("#stage canvas").evaluate(
        """(canvas, [x, y]) => [...canvas.getContext("2d")
            .getImageData(x * canvas.width, y * canvas.height, 20, 1).data].filter((_, i) => i % 4 === 3)""",
        [x, y],
    )
    return found


def test_parts_without_a_view_are_hatched_and_named(page: Page) -> None:
    body = explanation(box=(0, 0, 200, 300))
    body["views"] = body["views"][:1]
    mock_explain(page, lambda route: succeed(route, body))
    add(page, ("a.png", image_file(size=(400, 300))))
    expect(page.locator("#uncovered")).to_have_text("not seen by the network")
    expect(page.locator("#uncovered")).to_be_visible()
    hatched = alpha(page, 0.75, 0.5)
    assert hatched.count(0) == 16
    assert hatched.count(191) == 4
    assert len(set(alpha(page, 0.25, 0.9))) <= 2  # a smooth part of the map
    expect(page.locator("#view-list li")).to_have_text(["View 1 of 1: the part on the left"])


def test_views_that_cover_the_image_leave_nothing_hatched(page: Page) -> None:
    mock_explain(page)
    add(page, ("a.png", image_file(size=(400, 300))))
    expect(page.locator("#where")).not_to_be_empty()
    expect(page.locator("#uncovered")).to_be_hidden()
    expect(page.locator("#view-list li")).to_have_text(
        ["View 1 of 2: the part in the middle", "View 2 of 2: the whole image"]
    )


@pytest.mark.parametrize(
    ("size", "ends"),
    [
        ((400, 300), ["the part on the left", "the part on the right"]),
        ((300, 400), ["the part at the top", "the part at the bottom"]),
        ((340, 300), ["the part on the left", "the part on the right"]),
        ((1186, 1324), ["the part at the top", "the part at the bottom"]),
        ((1032, 1071), None),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_view_is_named_by_its_part_of_the_image(
    page: Page, size: tuple[int, int], ends: list[str] | None, kind: str
) -> None:
    body = explanation()
    view, data = body["views"][0], image_file(size=size, kind=kind)
    boxes = preprocess(data, CARD.input, max_pixels=10**7, views=MAX_VIEWS).boxes
    body["result"].update(width=size[0], height=size[1], views=len(boxes))
    body["views"] = [{**view, "box": [round(edge, 3) for edge in box]} for box in boxes]
    mock_explain(page, lambda route: succeed(route, body))
    add(page, ("a.png", data))
    parts = ["the part in the middle", "a close-up in the middle"]
    if ends:
        parts = [parts[0], "the whole image", parts[1], *ends]
    expect(page.locator("#view-list li")).to_have_text(
        [f"View {number} of {len(parts)}: {part}" for number, part in enumerate(parts, start=1)]
    )


@pytest.mark.parametrize(
    ("method", "text", "lower"),
    [
        (
            "class-activation map (Zhou et al. 2016)",
            "Coarse: 4 \N{MULTIPLICATION SIGN} 4 cells per view, on one scale for all classes.",
            True,
        ),
        (
            "Grad-CAM (Selvaraju et al. 2017)",
            "Coarse: 4 \N{MULTIPLICATION SIGN} 4 cells per view, scaled to its own maximum.",
            False,
        ),
    ],
)
def test_one_scale_for_all_classes_unless_the_method_has_none(page: Page, method: str, text: str, lower: bool) -> None:
    def reply(route: Route) -> None:
        dog = "label=dog" in route.request.url
        body: dict[str, Any] = explanation(label="dog" if dog else "cat")
        body["method"] = method
        for view in body["views"]:
            view["map"] = [[value / 3 if dog else value for value in row] for row in view["map"]]
        succeed(route, body)

    mock_explain(page, reply)
    add(page, ("a.png", image_file(size=(400, 300))))
    expect(page.locator("#where")).to_contain_text("cat")
    expect(page.locator("#scale")).to_have_text(text)
    first = max(alpha(page, 0.12, 0.12))
    page.get_by_role("button", name="dog, 6.0%").click()
    expect(page.locator("#where")).to_contain_text("dog")
    second = max(alpha(page, 0.12, 0.12))
    assert second == pytest.approx(first / (3 if lower else 1), abs=3)


def test_the_divider_shows_the_photo_on_its_left(page: Page) -> None:
    mock_explain(page)
    add(page, ("a.png", image_file(size=(400, 300))))
    divider, canvas, veil = (page.locator(f"#stage {part}") for part in ("#divider", "canvas", ".veil"))
    expect(canvas).to_have_css("clip-path", "inset(0px 0px 0px 0%)")
    stage = page.locator("#stage").bounding_box()
    assert stage
    page.mouse.move(stage["x"] + 2, stage["y"] + stage["height"] / 2)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] * 0.4, stage["y"] + 50, steps=4)
    page.mouse.up()
    assert float(divider.input_value()) == pytest.approx(40, abs=1.5)
    for layer in (canvas, veil):
        expect(layer).to_have_css("clip-path", f"inset(0px 0px 0px {divider.input_value()}%)")
    page.get_by_role("button", name="Heat map").click()
    for layer in (canvas, veil, divider):
        expect(layer).to_be_hidden()


@pytest.mark.parametrize(
    ("peak", "place"),
    [((0, 0), "in the upper left"), ((1, 0), "on the left"), ((3, 2), "at the bottom"), ((1, 3), "on the right")],
)
def test_the_place_of_the_strongest_evidence(page: Page, peak: tuple[int, int], place: str) -> None:
    body = explanation(peak=peak)
    body["views"] = body["views"][1:]
    mock_explain(page, lambda route: succeed(route, body))
    add(page, ("a.png", image_file(size=(400, 300))))
    expect(page.locator("#where")).to_have_text(f"The strongest evidence for cat is {place}.")
