import io

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from model import heatmap
from model.card import InputSpec
from model.errors import ImageTooLarge
from model.heatmap import LONGEST, overlay, png
from model.image import PreprocessedImage, preprocess
from model.views import MAX_VIEWS

LIMIT = 50_000_000


def black(width: int, height: int) -> bytes:
    return png(np.zeros((height, width, 3), np.uint8))


def heat_of(data: bytes, image: PreprocessedImage, maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """How light a black image is drawn: the hotter the lighter."""
    light: NDArray[np.float64] = overlay(data, image, maps, max_pixels=LIMIT).sum(axis=2, dtype=float)
    return light


def cell(row: int, column: int, views: int = 1, view: int = 0) -> NDArray[np.float32]:
    """Maps of 4 x 4 cells, all of them 0 but one."""
    maps = np.zeros((views, 4, 4), np.float32)
    maps[view, row, column] = 1
    return maps


def test_the_colours_are_matplotlibs_inferno() -> None:
    theirs = matplotlib.colormaps["inferno"](np.linspace(0, 1, len(heatmap._INFERNO)), bytes=True)[:, :3]
    assert np.abs(heatmap._INFERNO.astype(int) - theirs).max() <= 1


def test_what_speaks_against_the_class_is_not_drawn(spec: InputSpec) -> None:
    data = black(96, 96)
    image = preprocess(data, spec, max_pixels=LIMIT)
    drawn = overlay(data, image, -np.ones((1, 4, 4), np.float32), max_pixels=LIMIT)
    assert drawn.dtype == np.uint8
    assert not drawn.any()


def test_the_colour_of_the_image_pales_so_that_none_of_it_looks_like_heat(spec: InputSpec) -> None:
    data = png(np.full((64, 64, 3), (250, 150, 20), np.uint8))
    image = preprocess(data, spec, max_pixels=LIMIT)
    found = overlay(data, image, np.zeros((1, 4, 4), np.float32), max_pixels=LIMIT)[0, 0].astype(int)
    assert 50 < np.ptp(found) < 100


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("column", range(4))
def test_a_hot_cell_is_hottest_at_its_middle(row: int, column: int, spec: InputSpec) -> None:
    data = black(160, 160)
    image = preprocess(data, spec, max_pixels=LIMIT)
    heat = heat_of(data, image, cell(row, column))
    inside = heat[40 * row : 40 * row + 40, 40 * column : 40 * column + 40]
    assert inside[19:21, 19:21].max() >= 0.95 * heat.max()
    assert inside.sum() > 0.5 * heat.sum()
    far = np.ones_like(heat, bool)
    far[max(0, 40 * row - 42) : 40 * row + 82, max(0, 40 * column - 42) : 40 * column + 82] = False
    assert heat[far].max() < 0.02 * heat.max(), "cells further away are cold"


@settings(max_examples=60)
@given(
    st.integers(64, 500),
    st.integers(64, 500),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(1, MAX_VIEWS),
    st.data(),
)
def test_the_heat_of_a_cell_lies_where_the_view_shows_it(
    width: int, height: int, row: int, column: int, views: int, data: st.DataObject
) -> None:
    spec = InputSpec(resize=32, crop=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)
    file = black(width, height)
    image = preprocess(file, spec, max_pixels=LIMIT, views=views)
    count = len(image.pixels)
    view = data.draw(st.integers(0, count - 1))
    heat = heat_of(file, image, cell(row, column, count, view))
    assert heat.shape == (height, width)
    left, top, right, bottom = image.boxes[view]
    x, y = left + (column + 0.5) * (right - left) / 4, top + (row + 0.5) * (bottom - top) / 4
    hottest = np.argwhere(heat >= 0.97 * heat.max()) + 0.5
    assert (np.abs(hottest - (y, x)) < np.array([bottom - top, right - left]) / 8 + 1).all()


def test_the_heat_of_all_views_adds_up_where_they_lie(spec: InputSpec) -> None:
    data = black(320, 160)
    image = preprocess(data, spec, max_pixels=LIMIT, views=5)
    _, _, _, left, right = image.boxes
    assert (left, right) == ((0, 0, 160, 160), (160, 0, 320, 160))
    maps = np.zeros((5, 4, 4), np.float32)
    maps[3, 1, 1], maps[4, 1, 1] = 1, 0.4
    heat = heat_of(data, image, maps)
    assert heat[60, 60] > 1.8 * heat[60, 220] > 50
    assert heat[:, 130:180].max() <= 1


def test_the_heat_of_the_whole_image_counts_twice(spec: InputSpec) -> None:
    data = black(320, 160)
    image = preprocess(data, spec, max_pixels=LIMIT, views=5)
    maps = np.zeros((5, 4, 4), np.float32)
    # Cells of 80 x 40 and 40 x 40 pixels, so the same value is half as hot for each pixel of the first.
    maps[1, 1, 1], maps[4, 2, 2] = 1, 1
    heat = heat_of(data, image, maps)
    assert heat[60, 120] == pytest.approx(heat[100, 260], rel=0.02)
    assert heat[60, 120] > 200


def test_beyond_the_edge_of_a_view_the_heat_fades_out_and_at_the_images_it_continues(spec: InputSpec) -> None:
    data = black(320, 160)
    image = preprocess(data, spec, max_pixels=LIMIT)  # shows columns 80 to 240
    heat = heat_of(data, image, np.ones((1, 4, 4), np.float32))
    assert heat[:, 105:215].min() > 0.95 * heat.max()
    assert heat[:, :55].max() <= 1
    assert heat[:, 265:].max() <= 1
    assert np.abs(np.diff(heat[80])).max() < 0.1 * heat.max(), "no seam"


def test_what_is_level_is_drawn_level_up_to_the_edges_of_the_image(spec: InputSpec) -> None:
    data = black(96, 96)
    image = preprocess(data, spec, max_pixels=LIMIT)
    heat = heat_of(data, image, np.ones((1, 4, 4), np.float32))
    assert heat.min() >= 0.98 * heat.max() > 0


@pytest.mark.parametrize(
    ("width", "height", "drawn"),
    [
        (32, 32, (32, 32)),
        (1024, 700, (1024, 700)),
        (2048, 1024, (1024, 512)),
        (30, 3000, (10, 1024)),
        (1, 5000, (1, 1024)),
    ],
)
def test_the_longer_side_is_bounded(width: int, height: int, drawn: tuple[int, int], spec: InputSpec) -> None:
    data = black(width, height)
    image = preprocess(data, spec, max_pixels=LIMIT)
    found = overlay(data, image, np.ones((1, 4, 4), np.float32), max_pixels=LIMIT)
    assert found.shape == (drawn[1], drawn[0], 3)
    assert max(found.shape) <= LONGEST


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_large_photo_is_drawn_upright(orientation: int, spec: InputSpec) -> None:
    file = io.BytesIO()
    gradient = Image.linear_gradient("L").resize((2101, 3003))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {5: 0, 6: 3, 7: 0, 8: 1}.get(orientation)
    gradient.convert("RGB").save(file, "JPEG", exif=exif, quality=80)
    data = file.getvalue()
    image = preprocess(data, spec, max_pixels=LIMIT)
    found = overlay(data, image, np.zeros((1, 4, 4), np.float32), max_pixels=LIMIT)[..., 0].astype(float)
    assert found.shape == ((1024, 716) if turned is None else (716, 1024))
    # It was stored dark above and light below.
    darker = {1: "top", 2: "top", 3: "bottom", 4: "bottom", 5: "left", 6: "right", 7: "right", 8: "left"}[orientation]
    means = {"top": found[:99], "bottom": found[-99:], "left": found[:, :99], "right": found[:, -99:]}
    assert min(means, key=lambda side: means[side].mean()) == darker


def test_the_limit_of_pixels_holds_for_the_drawing_too(spec: InputSpec) -> None:
    data = black(50, 40)
    image = preprocess(data, spec, max_pixels=2000)
    with pytest.raises(ImageTooLarge):
        overlay(data, image, np.zeros((1, 4, 4), np.float32), max_pixels=1999)


def test_a_png_holds_the_very_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    image = Image.open(io.BytesIO(png(pixels)))
    assert image.format == "PNG"
    np.testing.assert_array_equal(np.asarray(image), pixels)
