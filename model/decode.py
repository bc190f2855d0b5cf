"""From a picture file's bytes to an upright picture in RGB, within limits."""

import warnings
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from model.errors import UnreadableImage, UnsupportedImage
from model.guard import BoundedFile, check_avif, check_scans, check_size, jpeg_scans, tiff_tile

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, pixels."""

Image.init()
# The limit is max_pixels, for every format; Pillow's own would warn or raise at another number.
Image.MAX_IMAGE_PIXELS = None
# Pillow warns of oddities in a file that it reads all the same. Set once: catch_warnings is not for threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF") if name in Image.OPEN)
"""The Pillow formats that are accepted, MPO as JPEG; AVIF and HEIF where this Pillow reads them."""

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
# Of these, the ones after which what was stored last, to the right or at the bottom, comes first.
_FROM_RIGHT, _FROM_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)


class Decoded(NamedTuple):
    """A picture file's first frame, upright.

    Attributes:
        image: RGB, smaller than the upload where a JPEG could be decoded so.
        width: of the upload as seen (after EXIF orientation), pixels.
        height: likewise.
        notes: what the caller should know.
        scale: pixels of the upload to one of `image`, across and down.
        left: where in `image` the upload begins: a JPEG decoded smaller has what fills up its last block before that.
        top: likewise.
    """

    image: Image.Image
    width: int
    height: int
    notes: list[str]
    scale: float
    left: float
    top: float

    def in_upload(self, box: Box) -> Box:
        """Where a part of `image` lies in the upload."""
        left, top, right, bottom = box
        return (
            max(0.0, (left - self.left) * self.scale),
            max(0.0, (top - self.top) * self.scale),
            min(float(self.width), (right - self.left) * self.scale),
            min(float(self.height), (bottom - self.top) * self.scale),
        )


def decode(data: bytes, *, side: int, max_pixels: int) -> Decoded:
    """Decode a picture file.

    Args:
        data: the whole file, in one of `FORMATS`; of an animation the first frame counts.
        side: pixels that each side keeps at least where a JPEG is decoded at 1/8, 1/4 or 1/2 of its size.
        max_pixels: the largest width x height, checked from the header before any pixel is decoded.

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
    scale, left, top = 1.0, 0.0, 0.0
    try:
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("only the first frame counts")
            image.seek(0)
        orientation = _orientation(image)
        if image.format in ("JPEG", "MPO") and (drafted := image.draft(image.mode, (side, side))):
            scale = width / drafted[1][2]
        image.load()
        rgb = _to_rgb(image)
        if orientation in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[orientation])
            if orientation >= 5:
                width, height = height, width
            left = rgb.width - width / scale if orientation in _FROM_RIGHT else 0.0
            top = rgb.height - height / scale if orientation in _FROM_BOTTOM else 0.0
        return Decoded(rgb, width, height, notes, scale, left, top)
    except Exception as error:  # Pillow's plugins let out whatever a damaged file makes them run into
        raise UnreadableImage("the picture is truncated or damaged: save it anew and send it again") from error


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
