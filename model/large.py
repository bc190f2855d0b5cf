"""Images in any of Pillow's modes as upright RGB of 8 bits, converted in parts."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, pixels."""

UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Value of EXIF tag 0x0112 -> the operation that turns the stored image upright."""

# The orientations whose upright image begins at the right or at the bottom end of the stored one.
FROM_RIGHT, FROM_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)

BAND: Final = 1 << 18
"""Pixels that are converted at once."""
# Grey of 16 bits in 8.
_SIXTEEN_BITS = np.rint(np.arange(1 << 16, dtype=np.float32) * np.float32(1 / 257)).astype(np.uint8)
# In the `info` of an image: which number of grey is white, and that its integers have no sign.
WHITE, UNSIGNED = "white", "unsigned"


class LargeImage:
    """A decoded image that is converted to upright RGB in parts, because a converted copy would double the memory.

    It has the methods of Pillow's Image that the transforms use, with the same results.
    """

    def __init__(self, stored: Image.Image, orientation: int, gain: float | None, box: tuple[int, int, int, int]):
        """
        Args:
            stored: as decoded.
            orientation: 1 to 8, as in EXIF.
            gain: of `gain_of`.
            box: the part that this object stands for, in the upright image.
        """
        self._stored, self._orientation, self._gain, self._box = stored, orientation, gain, box
        self.width, self.height = self.size = box[2] - box[0], box[3] - box[1]

    def crop(self, box: tuple[int, int, int, int]) -> "LargeImage":
        """A part, not yet converted."""
        left, top, _, _ = self._box
        part = box[0] + left, box[1] + top, box[2] + left, box[3] + top
        return LargeImage(self._stored, self._orientation, self._gain, part)

    def rgb(self) -> Image.Image:
        """All of it, converted."""
        left, top, right, bottom = self._box
        width, height = self._stored.im.size
        if self._orientation >= 5:
            width, height = height, width
        if self._orientation in FROM_RIGHT:
            left, right = width - right, width - left
        if self._orientation in FROM_BOTTOM:
            top, bottom = height - bottom, height - top
        if self._orientation >= 5:
            left, top, right, bottom = top, left, bottom, right
        part = _to_rgb(self._stored.crop((left, top, right, bottom)), self._gain)
        turn = UPRIGHT.get(self._orientation)
        return part if turn is None else part.transpose(turn)

    def reduce(self, factors: tuple[int, int]) -> Image.Image:
        """Averages of blocks of so many columns and rows."""
        across, down = factors
        columns = min(self.width, max(1, BAND // (across * down)) * across)
        rows = max(1, BAND // (columns * down)) * down
        out = Image.new("RGB", (-(-self.width // across), -(-self.height // down)))
        for top in range(0, self.height, rows):
            for left in range(0, self.width, columns):
                part = self.crop((left, top, min(left + columns, self.width), min(top + rows, self.height)))
                out.paste(part.rgb().reduce(factors), (left // across, top // down))
        return out

    def resize(
        self,
        size: tuple[int, int],
        resample: Image.Resampling,
        box: Box | None = None,
        reducing_gap: float | None = None,
    ) -> Image.Image:
        """As Pillow's. With a box or a gap, the image is converted whole after it has been reduced by the gap."""
        if box is None and reducing_gap is None:
            return self._resize(size, resample)
        left, top, right, bottom = box or (0, 0, *self.size)
        gap = reducing_gap or self.width + self.height
        across = int((right - left) / size[0] / gap) or 1
        down = int((bottom - top) / size[1] / gap) or 1
        reduced = (left / across, top / down, right / across, bottom / down)
        return self.reduce((across, down)).resize(size, resample, reduced)

    def _resize(self, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        """Resize along one side in bands, and the result of it along the other, in Pillow's order."""
        # Pillow 13 resizes the height first where it shrinks by more than twice as much as the width.
        shrunk = self.height - size[1]
        if shrunk > max(0, 2 * (self.width - size[0])):
            columns = max(1, BAND // self.height)
            once = Image.new("RGB", (self.width, size[1]))
            for left in range(0, self.width, columns):
                band = self.crop((left, 0, min(left + columns, self.width), self.height)).rgb()
                once.paste(band.resize((band.width, size[1]), resample), (left, 0))
        else:
            rows = max(1, BAND // self.width)
            once = Image.new("RGB", (size[0], self.height))
            for top in range(0, self.height, rows):
                band = self.crop((0, top, self.width, min(top + rows, self.height))).rgb()
                once.paste(band.resize((size[0], band.height), resample), (0, top))
        return once.resize(size, resample)


def _to_rgb(image: Image.Image, gain: float | None) -> Image.Image:
    """Any mode to 8-bit RGB: transparency over white, wide grey times the gain."""
    if image.mode.startswith("I;16"):
        image = _from_16_bits(image)
    elif gain is not None:
        values = _wide(image)
        values *= np.float32(gain)
        np.minimum(values, 255, out=values)
        image = Image.fromarray(np.rint(values, out=values).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8, white where it is transparent."""
    values, transparent = np.asarray(image), image.info.get("transparency")
    white = image.info.get(WHITE, 65535)
    if white == 4095:
        values = np.minimum(values, 4095) * np.uint16(16) + (values >> 8)
    grey = _SIXTEEN_BITS[values]
    if white == 0:
        grey = 255 - grey
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def gain_of(image: Image.Image) -> float | None:
    """The factor that scales 32-bit integers and floating-point grey to 0 to 255, from the range of the values.

    The largest finite value is white if it is above 255. Smaller values are taken as they are. Floating-point values up
    to 1 are shares of white.
    """
    if image.mode not in ("I", "F"):
        return None
    width, height = image.im.size
    columns = min(width, BAND)
    rows = max(1, BAND // columns)
    top = max(
        float(_wide(image.crop((x, y, min(x + columns, width), min(y + rows, height))), infinite=0).max())
        for y in range(0, height, rows)
        for x in range(0, width, columns)
    )
    if top > 255:
        return 255 / top
    return 255.0 if image.mode == "F" and top <= 1 else 1.0


def _wide(image: Image.Image, *, infinite: float = np.inf) -> NDArray[np.float32]:
    """The values of 32-bit integers or floating-point grey, with 0 for NaN and negative values.

    Args:
        image: in mode I or F.
        infinite: the value in the place of infinity.
    """
    numbers = np.asarray(image)
    values = np.array(numbers.view(np.uint32) if image.info.get(UNSIGNED) else numbers, dtype=np.float32)
    if image.mode == "F":
        np.nan_to_num(values, copy=False, posinf=infinite, neginf=0)
    return np.maximum(values, 0, out=values)


def is_converted_at_once(width: int, height: int) -> bool:
    """Whether an image of this size is small enough to be converted as a whole."""
    return width * height <= BAND
