"""From bytes to the pixels that the network sees: decoding within limits, then the card's test transform.

Evaluation and serving both come through here, so they can never differ.
"""

import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model.card import InputSpec
from model.errors import UnreadableImage, UnsupportedImage
from model.guard import BoundedFile, check_avif, check_scans, check_size, jpeg_scans, tiff_tile

Image.init()
# The limit is max_pixels, for every format; Pillow's own would warn or raise at another number.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of oddities in a file that it reads all the same. Set once: catch_warnings is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF") if name in Image.OPEN)
"""The Pillow formats that are accepted, MPO as JPEG; AVIF and HEIF where this Pillow reads them."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# The value of EXIF tag 0x0112 -> what turns the stored picture upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A JPEG is decoded at the smallest of 1/8, 1/4, 1/2 that leaves this many times the side asked for.
_DRAFT_MARGIN = 4

# Longer than this many times its width, a picture is cut to its middle before it is resized: enlarging a strip of
# 1 x 50,000,000 pixels whole would take 51 GB.
_STRIP = 16


# Further views: side as a share of the shorter side (0: the whole picture, squeezed square), and where it lies in what
# is left, from left to right and top to bottom. Closer ones made answers worse on the photo benchmark.
_VIEWS = ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (1.0, 1.0, 1.0))
MAX_VIEWS: Final = 1 + len(_VIEWS)
"""Most views of one picture."""

# From this ratio of its sides on, a picture is worth more than one view.
_OBLONG = 1.1

# Views but the first are cut from the picture reduced to this many times the side asked for.
_VIEW_SOURCE = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """One upload, ready for the engine.

    Attributes:
        pixels: uint8[V, crop, crop, 3], RGB: V views of it, the first by the exact test transform.
        width: of the upload as seen (after EXIF orientation), pixels.
        height: likewise.
        warnings: what the caller should know, such as "upscaled from 8x8".
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int
    warnings: tuple[str, ...]


def prepare(data: bytes, spec: InputSpec, *, max_pixels: int, views: int = 1) -> Picture:
    """Decode a picture file and apply the test transform.

    Args:
        data: the whole file, in one of `FORMATS`; of an animation the first frame counts.
        spec: of the card.
        max_pixels: the largest width x height, checked from the header before any pixel is decoded.
        views: how many, 1 to `MAX_VIEWS`, of a picture that is large and oblong; else it has one.

    Raises:
        UnsupportedImage: not one of the formats.
        UnreadableImage: truncated or damaged.
        ImageTooLarge: more pixels than the limit.
    """
    scans = jpeg_scans(data)
    image = _open(data, max_pixels)
    width, height = image.size
    check_size(width, height, max_pixels)
    if width == 0 or height == 0:
        raise UnreadableImage("the picture has no pixels: send another one")
    check_scans(scans, width, height, max_pixels)
    if image.format == "TIFF":
        check_size(*tiff_tile(data), max_pixels)
    notes = []
    try:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("only the first frame counts")
            image.seek(0)
        orientation = _orientation(image)
        if image.format in ("JPEG", "MPO"):
            image.draft(image.mode, (spec.resize * _DRAFT_MARGIN, spec.resize * _DRAFT_MARGIN))
        image.load()
        rgb = _to_rgb(image)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
            if orientation >= 5:
                width, height = height, width
        if min(width, height) < spec.resize:
            notes.append(f"upscaled from {width}x{height}")
        return Picture(views_of(rgb, spec, views), width, height, tuple(notes))
    except Exception as error:  # Pillow's plugins let out whatever a damaged file makes them run into
        raise UnreadableImage("the picture is truncated or damaged: save it anew and send it again") from error


def test_transform(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Resize the shorter side to spec.resize, antialiased, and cut out the central square.

    Equals torchvision's Compose([Resize(spec.resize), CenterCrop(spec.crop)]) on the same RGB picture, save that a
    strip longer than 16 times its width is cut before it is resized.

    Args:
        image: RGB.
        spec: of the card.

    Returns:
        uint8[crop, crop, 3].
    """
    width, height = image.size
    if max(width, height) > _STRIP * min(width, height):
        side = min(width, height) * _STRIP
        left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
        image = image.crop((left, top, min(width, left + side), min(height, top + side)))
        width, height = image.size
    short = min(width, height)
    if short != spec.resize:
        width, height = spec.resize * width // short, spec.resize * height // short
        image = image.resize((width, height), _FILTERS[spec.interpolation])
    if (width, height) != (spec.crop, spec.crop):
        left, top = round((width - spec.crop) / 2), round((height - spec.crop) / 2)
        image = image.crop((left, top, left + spec.crop, top + spec.crop))
    return np.array(image)  # a copy, because Pillow lends its pixels read-only


def views_of(image: Image.Image, spec: InputSpec, count: int) -> NDArray[np.uint8]:
    """The picture under the test transform, and then other squares of it, in the order of `_VIEWS`.

    Args:
        image: RGB.
        spec: of the card.
        count: 1 to `MAX_VIEWS`. A picture that is nearly square, or has a side under twice spec.resize, has one view
            all the same: the others would show nothing else.

    Returns:
        uint8[V, crop, crop, 3], V = count or 1.
    """
    first = test_transform(image, spec)
    short, long = sorted(image.size)
    if count == 1 or short < 2 * spec.resize or long < _OBLONG * short:
        return first[None]
    # Once, so that each view costs little however large the picture is.
    if short > _VIEW_SOURCE * spec.resize:
        scale = _VIEW_SOURCE * spec.resize / short
        size = (round(image.width * scale), round(image.height * scale))
        image = image.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    views = [first]
    for view in _VIEWS[: count - 1]:
        box = _box(*image.size, *view)
        views.append(np.array(image.resize((spec.crop, spec.crop), _FILTERS[spec.interpolation], box=box)))
    return np.stack(views)


def _box(width: int, height: int, share: float, x: float, y: float) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a view."""
    across, down = (share * min(width, height),) * 2 if share else (width, height)
    left, top = x * (width - across), y * (height - down)
    return left, top, left + across, top + down


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        return Image.open(BoundedFile(data), formats=FORMATS)
    except Exception as error:
        check_avif(data, max_pixels)
        if any(accept and accept(data[:16]) for accept in (Image.OPEN[name][1] for name in FORMATS)):
            raise UnreadableImage("the picture's header is damaged: save it anew and send it again") from error
        if not isinstance(error, UnidentifiedImageError):
            raise UnreadableImage("the picture cannot be read: save it anew and send it again") from error
        raise UnsupportedImage(f"this is not a picture in an accepted format: send {', '.join(FORMATS)}") from error


def _orientation(image: Image.Image) -> int:
    """How the stored picture lies, 1..8, by its EXIF; upright where that is damaged."""
    if image.format == "TIFF":
        return 1  # Pillow turns it itself
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB: transparency over white, 16 bits scaled to 8."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_grey(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating-point grey to 8 bits, by the range that the values are in."""
    values: NDArray[np.float32] = np.nan_to_num(np.asarray(image, dtype=np.float32)).clip(0)
    top = float(values.max())
    if image.mode.startswith("I;16") or top > 255:
        values *= np.float32(1 / 257 if top <= 65535 else 255 / top)
    elif image.mode == "F" and top <= 1:
        values *= 255
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))
