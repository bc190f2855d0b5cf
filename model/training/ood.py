"""Synthetic out-of-distribution images, on which the out-of-distribution score is measured."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

_SEED = 20260101
_CANVAS = 128


def tiles(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Each image cut into 4 x 4 tiles in random order: the same colours and textures, but no object.

    Up to 3 rows and columns at the end are left out, so that the tiles are of one size.
    """
    part = pixels.shape[1] // 4
    pixels = pixels[:, : 4 * part, : 4 * part]
    count = len(pixels)
    cut = pixels.reshape(count, 4, part, 4, part, 3).transpose(0, 1, 3, 2, 4, 5).reshape(count, 16, part, part, 3)
    order = rng.permuted(np.tile(np.arange(16), (count, 1)), axis=1)
    mixed = np.take_along_axis(cut, order[:, :, None, None, None], axis=1)
    return mixed.reshape(count, 4, 4, part, part, 3).transpose(0, 1, 3, 2, 4, 5).reshape(pixels.shape)


def shapes(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Flat ellipses, polygons, lines and rectangles, as in charts and signs; as many images of the same size."""
    return np.stack([_drawn(rng, pixels.shape[1]) for _ in range(len(pixels))])


def clouds(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Coloured noise, from fine grain to blurs; as many images of the same size."""
    side = pixels.shape[1]
    return np.stack([_cloud(rng, side) for _ in range(len(pixels))])


KINDS: Mapping[str, Callable[[NDArray[np.uint8], np.random.Generator], NDArray[np.uint8]]] = {
    "shuffled tiles": tiles,
    "drawn shapes": shapes,
    "coloured noise": clouds,
}
"""Name -> function of images of the data set, uint8[N, S, S, 3], and a generator, which returns uint8[N, S, S, 3]."""


def others(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """Images of each kind, the same ones in each call.

    Args:
        pixels: images of the data set, uint8[N, S, S, 3].

    Returns:
        Kind -> uint8[N, S, S, 3].
    """
    return {
        name: make(pixels, np.random.default_rng([_SEED, number])) for number, (name, make) in enumerate(KINDS.items())
    }


def _drawn(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    image = Image.new("RGB", (_CANVAS, _CANVAS), _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 9)):
        points = [(int(x), int(y)) for x, y in rng.integers(0, _CANVAS, (int(rng.integers(3, 6)), 2))]
        low, high = np.sort(rng.integers(0, _CANVAS, (2, 2)), axis=0)
        box = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
        match int(rng.integers(4)):
            case 0:
                draw.ellipse(box, fill=_colour(rng))
            case 1:
                draw.polygon(points, fill=_colour(rng))
            case 2:
                draw.line(points, fill=_colour(rng), width=int(rng.integers(1, 12)))
            case _:
                draw.rectangle(box, fill=_colour(rng), outline=_colour(rng))
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR))


def _cloud(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    grain = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
    blurred = np.asarray(grain.filter(ImageFilter.GaussianBlur(float(rng.uniform(0, side / 8)))), np.float64)
    low, high = blurred.min(axis=(0, 1)), blurred.max(axis=(0, 1))
    stretched: NDArray[np.uint8] = ((blurred - low) / np.maximum(high - low, 1) * 255).astype(np.uint8)
    return stretched


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)
