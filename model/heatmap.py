"""A class-activation map drawn over its image."""

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from model.decode import decode, inspect
from model.image import PreprocessedImage
from model.views import view_weights

LONGEST: Final = 1024
"""Pixels of the longer side of a drawing, at most."""

# Bytes of the arrays of a drawing of that size, and of the reduced image that it is made from, with sides
# less than four times as long.
_ARRAYS, _REDUCED = 48 * LONGEST**2, 64 * LONGEST**2

# Every sixteenth colour of "inferno", by Nathaniel J. Smith and Stéfan van der Walt (CC0,
# https://bids.github.io/colormap): equal steps look equal, with
# red-green blindness too.
_INFERNO = np.frombuffer(
    bytes.fromhex(
        "000004 0b0724 210c4a 3d0965 57106e 71196e 8a226a a32c61 "
        "bc3754 d24644 e45a31 f1731d f98e09 fcac11 f9cb35 f2ea69 fcffa4"
    ),
    np.uint8,
).reshape(-1, 3)

# The opacity of the hottest place, the share of the colour map that is left out at its dark end, and the share of the
# image's own saturation that is kept. With less of its own colour, no part of the image looks like heat.
_OPACITY, _COLDEST, _OWN = 0.7, 0.25, 0.4

# By heat, 0 to 255: the factor of the image's colour, float32[256, 1], and the colour added, float32[256, 3].
_HEATS = np.linspace(0, 1, 256)
_LEFT = (1 - _OPACITY * _HEATS[:, None]).astype(np.float32)
_ADDED = (1 - _LEFT) * np.stack(
    [np.interp(_COLDEST + (1 - _COLDEST) * _HEATS, np.linspace(0, 1, len(_INFERNO)), part) for part in _INFERNO.T],
    axis=1,
).astype(np.float32)


def overlay(
    data: bytes,
    image: PreprocessedImage,
    maps: NDArray[np.float32],
    *,
    scale: NDArray[np.float32] | None = None,
    max_pixels: int,
) -> NDArray[np.uint8]:
    """Draw the positive part of a class's activation maps over the upload.

    The maps of all views, times their weights in the prediction, are added up at their places in the upload.

    Args:
        data: the whole file.
        image: the result of `preprocess` for this file.
        maps: of one class, the contribution of each cell to its logit in the first V views, float32[V, h, w].
        scale: maps of the class whose hottest place gets the last colour, so that the maps of several classes can be
            compared; `maps` if not given.
        max_pixels: as for `preprocess`. Memory is limited as for it, too.

    Returns:
        uint8[H, W, 3], RGB, upright, the longer side at most `LONGEST`.

    Raises:
        ImageError: as `preprocess`.
    """
    seen = _reduced(data, image, max_pixels)
    heat = _heat(image, maps, seen.shape[1], seen.shape[0])
    full = heat.max() if scale is None else _heat(image, scale, seen.shape[1], seen.shape[0]).max()
    # Without evidence for the class of the scale, the map has its own.
    level = np.minimum(heat * (255 / (full or heat.max() or 1)), 255).astype(np.uint8)
    drawn: NDArray[np.uint8] = (seen * _LEFT[level] + _ADDED[level]).astype(np.uint8)
    return drawn


def overlay_memory(data: bytes, *, max_pixels: int) -> int:
    """Estimate how much memory `overlay` takes for an image file at most, from its header only.

    Args:
        data: the whole file.
        max_pixels: as for `preprocess`.

    Returns:
        Bytes.

    Raises:
        ImageError: as `preprocess`, as far as the header shows it.
    """
    found = inspect(data, side=LONGEST, max_pixels=max_pixels)[1]
    factor = max(1, max(found.width, found.height) // (2 * LONGEST))
    return found.memory + min(4 * found.width * found.height // factor**2, _REDUCED) + _ARRAYS


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode an image, uint8[H, W, 3], as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)  # 6 takes four times as long for a tenth less
    return file.getvalue()


def _reduced(data: bytes, image: PreprocessedImage, max_pixels: int) -> NDArray[np.uint8]:
    """The upload, upright, its longer side at most `LONGEST`, its colours paler."""
    scale = min(1.0, LONGEST / max(image.width, image.height))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    found = decode(data, side=min(size), max_pixels=max_pixels)
    left, top = found.left, found.top
    box = left, top, left + found.width / found.scale, top + found.height / found.scale
    reduced = found.image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    return np.asarray(ImageEnhance.Color(reduced).enhance(_OWN))


def _heat(image: PreprocessedImage, maps: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    """The positive part of the views' maps, times their weights, summed for each pixel, float32[height, width].

    The value of a cell is spread over the pixels that it covers. Values are interpolated between the centres of cells.
    They fade out beyond the edge of a view, but not at the edge of the image.
    """
    heat = np.zeros((height, width), np.float32)
    across, down = width / image.width, height / image.height
    for box, cells, weight in zip(image.boxes[: len(maps)], maps, view_weights(len(maps)), strict=True):
        rows, columns = cells.shape
        left, top, right, bottom = box[0] * across, box[1] * down, box[2] * across, box[3] * down
        wide, high = (right - left) / columns, (bottom - top) / rows
        grid = np.pad(np.maximum(cells, 0) * (weight / (wide * high)), 1)
        # Left, right, top and bottom, with the corners.
        if left < 0.5:
            grid[:, 0] = grid[:, 1]
        if right > width - 0.5:
            grid[:, -1] = grid[:, -2]
        if top < 0.5:
            grid[0] = grid[1]
        if bottom > height - 0.5:
            grid[-1] = grid[-2]
        # From pixels of the drawing to those of the grid, which has one cell of padding.
        where = (1 / wide, 0.0, 1 - left / wide, 0.0, 1 / high, 1 - top / high)
        padded = Image.fromarray(grid.astype(np.float32))
        spread = padded.transform((width, height), Image.Transform.AFFINE, where, Image.Resampling.BICUBIC)
        heat += np.asarray(spread).clip(0, grid.max())  # the interpolation overshoots
    return heat
