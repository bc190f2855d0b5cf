"""The heat map: its colours, its scale, where there is no view, and its controls."""

from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, Route, expect

from model import MAX_VIEWS, preprocess
from tests.app.fakes import CARD, image_file
from tests.page.browsing import add, explanation, mock_explain, succeed

# Machado et al. 2009, severity 1: linear RGB as people without M cones see it.
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])


def over_grey(colours: np.ndarray, grey: float) -> np.ndarray:
    """The colours over a part of the image, whose brightness is reduced to 55 %, as linear RGB."""
    mixed = colours[:, :3] * colours[:, 3:] + 255 * 0.55 * grey * (1 - colours[:, 3:])
    linear: np.ndarray = ((mixed / 255 + 0.055) / 1.055) ** 2.4
    return linear


@pytest.mark.parametrize("grey", [0.0, 0.5, 1.0])
def test_more_evidence_is_brighter_for_everyone(page: Page, grey: float) -> None:
    colours = np.array(
        page.evaluate(
            """async () => {
                const { colourOf } = await import(new URL("static/heat.js", document.baseURI));
                return Array.from({ length: 21 }, (_, i) => colourOf(i / 20));
            }"""
        )
    )
    assert (np.diff(colours[:, 3]) > 0).all()  # the opacity grows
    assert colours[[0, -1], 3].tolist() == [0, 1]
    seen = over_grey(colours, grey)
    for brightness in (seen @ _LUMINANCE, np.clip(seen @ _DEUTERANOPIA.T, 0, 1) @ _LUMINANCE):
        steps = np.diff(brightness)
        assert (steps > -0.01).all()
        assert (steps[10:] > 0).all()
        assert brightness[-1] > brightness[0] + 0.4


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
        ("class-activation map (Zhou et al. 2016)", "All classes of an image share one scale.", True),
        ("Grad-CAM (Selvaraju et al. 2017)", "The map is scaled to its own maximum.", False),
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
    assert second == pytest.approx(first * (3**-1.5 if lower else 1), abs=3)


def test_the_image_below_is_grey_and_the_opacity_can_be_set(page: Page) -> None:
    mock_explain(page)
    add(page, ("a.png", image_file(size=(400, 300))))
    image, canvas = page.locator("#stage img"), page.locator("#stage canvas")
    expect(image).to_have_css("filter", "grayscale(1) brightness(0.55)")
    expect(canvas).to_have_css("opacity", "0.85")
    page.get_by_label("Opacity").fill("40")
    expect(canvas).to_have_css("opacity", "0.4")
    page.get_by_role("button", name="Heat map").click()
    expect(image).to_have_css("filter", "none")


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
