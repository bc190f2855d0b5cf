"""From bytes to the network's input pixels: decoding within limits, then the card's test transform.

Evaluation and serving share this code, so that they cannot differ.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.card import InputSpec
from model.decode import STRIP, decode, estimate
from model.large import Box, LargeImage
from model.views import further_views

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# A JPEG is decoded at the smallest of 1/8, 1/4, 1/2 that leaves this many times spec.resize on each side.
_DRAFT_MARGIN = 4

# Views after the first are cut from the image, reduced to this many times spec.resize.
_VIEW_SOURCE = 4


@dataclass(frozen=True, slots=True)
class PreprocessedImage:
    """One image, ready for the engine.

    Attributes:
        pixels: uint8[V, crop, crop, 3], RGB: V views, the first by the exact test transform.
        boxes: the part of the upright upload that each view shows, pixels.
        width: of the upright upload, pixels.
        height: likewise.
        warnings: for the client, such as "upscaled from 8x8".
    """

    pixels: NDArray[np.uint8]
    boxes: tuple[Box, ...]
    width: int
    height: int
    warnings: tuple[str, ...]


def preprocess(data: bytes, spec: InputSpec, *, max_pixels: int, views: int = 1) -> PreprocessedImage:
    """Decode an image file and apply the test transform.

    Args:
        data: the whole file, in one of `FORMATS`; of an animation the first frame counts.
        spec: of the card.
        max_pixels: the largest width x height, checked from the header before any pixel is decoded.
        views: number of views, 1 to `MAX_VIEWS`, of an image that is large and oblong. A large image that is nearly
            square has two at most, and a small one has one.

    Raises:
        UnsupportedImage: not one of the formats.
        UnreadableImage: truncated or damaged.
        ImageTooLarge: more pixels than the limit, or more memory or time to decode than they may take.
    """
    found = decode(data, side=spec.resize * _DRAFT_MARGIN, max_pixels=max_pixels)
    width, height, notes = found.width, found.height, found.notes
    if min(width, height) < spec.resize:
        notes.append(f"upscaled from {width}x{height}")
    pixels, boxes = views_of(found.image, spec, views)
    return PreprocessedImage(pixels, tuple(map(found.in_upload, boxes)), width, height, tuple(notes))


def decode_memory(data: bytes, *, side: int, max_pixels: int) -> int:
    """Estimate how much memory `preprocess` takes for an image file, from its header only.

    Args:
        data: the whole file.
        side: spec.resize of the card.
        max_pixels: as for `preprocess`.

    Returns:
        Bytes, enough for an ordinary file with this header; at most 6.4 for each pixel of the limit, and 16 million.
    """
    return estimate(data, side=side * _DRAFT_MARGIN, max_pixels=max_pixels)


def test_transform(image: Image.Image | LargeImage, spec: InputSpec) -> NDArray[np.uint8]:
    """Resize the shorter side to spec.resize, antialiased, and cut out the central square.

    Equals torchvision's Compose([Resize(spec.resize), CenterCrop(spec.crop)]) on the same RGB image, except that a
    strip longer than 16 times its width is cut before it is resized.

    Args:
        image: RGB.
        spec: of the card.

    Returns:
        uint8[crop, crop, 3].
    """
    image, crop = _resized(image, spec)
    if crop != (0, 0, *image.size):
        image = image.crop(crop)
    return np.array(image)  # a copy, because Pillow lends its pixels read-only


def square_for_crops(data: bytes, spec: InputSpec, *, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an image file, resize its shorter side to spec.resize and cut out a central square of that side.

    `test_transform` of the result equals the first view of `preprocess`. The rest is room for random crops.

    Args and errors are those of `preprocess`.

    Returns:
        uint8[resize, resize, 3], RGB.
    """
    found = decode(data, side=spec.resize * _DRAFT_MARGIN, max_pixels=max_pixels)
    image, (left, top, _, _) = _resized(found.image, spec)
    margin = round((spec.resize - spec.crop) / 2)
    left, top = left - margin, top - margin
    return np.array(image.crop((left, top, left + spec.resize, top + spec.resize)))


def _resized(image: Image.Image | LargeImage, spec: InputSpec) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The image with its shorter side resized, and the part of it that the test transform returns."""
    cut, size, crop = _test_transform(*image.size, spec)
    if cut != (0, 0, *image.size):
        image = image.crop(cut)
    if image.size != size:
        image = image.resize(size, _FILTERS[spec.interpolation])
    if isinstance(image, LargeImage):
        image = image.rgb()
    return image, crop


def _test_transform(
    width: int, height: int, spec: InputSpec
) -> tuple[tuple[int, int, int, int], tuple[int, int], tuple[int, int, int, int]]:
    """The part of an image that is resized, its new width and height, and the part of the result that is returned."""
    side = STRIP * min(width, height)
    left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
    cut = left, top, min(width, left + side), min(height, top + side)
    width, height = cut[2] - left, cut[3] - top
    short = min(width, height)
    size = spec.resize * width // short, spec.resize * height // short
    left, top = round((size[0] - spec.crop) / 2), round((size[1] - spec.crop) / 2)
    return cut, size, (left, top, left + spec.crop, top + spec.crop)


def _central_box(width: int, height: int, spec: InputSpec) -> Box:
    """The part of an image of this size that the test transform shows."""
    (left, top, right, bottom), (columns, rows), crop = _test_transform(width, height, spec)
    across, down = (right - left) / columns, (bottom - top) / rows
    return left + crop[0] * across, top + crop[1] * down, left + crop[2] * across, top + crop[3] * down


def views_of(image: Image.Image | LargeImage, spec: InputSpec, count: int) -> tuple[NDArray[np.uint8], list[Box]]:
    """The image after the test transform, then `further_views` of it.

    Args:
        image: RGB.
        spec: of the card.
        count: 1 to `MAX_VIEWS`.

    Returns:
        The views, uint8[V, crop, crop, 3], V <= count, and the part of the image that each shows, pixels.
    """
    first, boxes = test_transform(image, spec), [_central_box(*image.size, spec)]
    further = further_views(*image.size, side=spec.resize, count=count)
    if not further:
        return first[None], boxes
    short, long = sorted(image.size)
    if long > STRIP * short:
        boxes += [view.box(*image.size) for view in further]
        return np.stack([first, *(_view_of_strip(image, box, spec) for box in boxes[1:])]), boxes
    across = down = 1.0
    # Once, so that each view costs little however large the image is.
    if short > _VIEW_SOURCE * spec.resize:
        scale = _VIEW_SOURCE * spec.resize / short
        size = (round(image.width * scale), round(image.height * scale))
        across, down = image.width / size[0], image.height / size[1]
        image = image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    views = [first]
    for view in further:
        left, top, right, bottom = box = view.box(*image.size)
        views.append(np.array(image.resize((spec.crop, spec.crop), _FILTERS[spec.interpolation], box=box)))
        boxes.append((left * across, top * down, right * across, bottom * down))
    return np.stack(views), boxes


def _view_of_strip(image: Image.Image | LargeImage, box: Box, spec: InputSpec) -> NDArray[np.uint8]:
    """A view cut from the image itself, because reducing a strip by its shorter side leaves it large."""
    left, top, right, bottom = box
    part = image.crop((round(left), round(top), round(right), round(bottom)))
    size = spec.crop, spec.crop
    return np.array(part.resize(size, _FILTERS[spec.interpolation], reducing_gap=_VIEW_SOURCE))
