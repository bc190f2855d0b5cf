"""From an image file's bytes to an upright image in RGB, within a limit of pixels.

Decoding takes time and memory in proportion to the pixels, for most files. `app/serving/children.py` limits both for
files that are made to take more.
"""

import io
import re
import zlib
from typing import NamedTuple

import numpy as np
import pillow_heif
from PIL import AvifImagePlugin, Image, ImageFile, features

from model.errors import ImageError, ImageTooLarge, UnreadableImage, UnsupportedImage
from model.formats import TABLE, header_of, most, needed
from model.large import FROM_BOTTOM, FROM_RIGHT, UPRIGHT, Box, LargeImage, gain_of, is_converted_at_once
from model.signatures import describe
from model.tiff import check_tiff, correct_tiff

Image.init()
# The other images of a file, such as thumbnails and depth maps, are not read.
pillow_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)

FORMATS: tuple[str, ...] = tuple(
    row.name
    for row in TABLE
    if row.name in Image.OPEN and (row.name.lower() not in features.modules or features.check(row.name.lower()))
)
"""The Pillow formats that are accepted, MPO as JPEG; AVIF where this Pillow reads it."""

AvifImagePlugin.DEFAULT_MAX_THREADS = 1

_ORIENTATION_TAG = 0x0112
_ORIENTATION_BYTES = 100_000
# Segments of EXIF data of a JPEG, at most: Pillow copies the data so far for each.
_EXIF_PARTS = 200
# An image longer than this many times its width is cut to its middle before it is resized.
STRIP = 16
# A file is read in at most this many pieces, and one more for each 32 bytes. Millions of empty blocks keep Pillow busy
# for minutes, while an ordinary GIF of 20 MB has pieces of some hundred bytes.
_PIECES, _PIECE_BYTES = 10_000, 32


class BoundedFile(io.BytesIO):
    """An upload, read in a bounded number of pieces."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._pieces = _PIECES + len(data) // _PIECE_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        self._pieces -= 1
        if self._pieces < 0:
            raise OSError("read in too many pieces")
        return super().read(size)


class Decoded(NamedTuple):
    """An image file's first frame, upright.

    Attributes:
        image: RGB, smaller than the upload where a JPEG could be decoded so.
        width: of the upright upload, pixels.
        height: likewise.
        notes: warnings for the client.
        scale: pixels of the upload to one of `image`, across and down.
        left: column of `image` where the upload begins. The padding of a reduced, turned JPEG comes before it.
        top: row, likewise.
    """

    image: Image.Image | LargeImage
    width: int
    height: int
    notes: list[str]
    scale: float
    left: float
    top: float

    def in_upload(self, box: Box) -> Box:
        """The part of the upload that a part of `image` shows."""
        left, top, right, bottom = box
        return (
            max(0.0, (left - self.left) * self.scale),
            max(0.0, (top - self.top) * self.scale),
            min(float(self.width), (right - self.left) * self.scale),
            min(float(self.height), (bottom - self.top) * self.scale),
        )


def estimate(data: bytes, *, side: int, max_pixels: int) -> int:
    """Estimate how much memory decoding an image file takes, from its header only.

    Args:
        data: the whole file.
        side: as for `decode`.
        max_pixels: as for `decode`.

    Returns:
        Bytes, enough for an ordinary file with this header, and at most `most(max_pixels)`.
    """
    kinds = _kinds(data)
    found = needed(kinds[-1], data, side=side) if kinds else most(0)
    return min(most(max_pixels), found or most(max_pixels))


def decode(data: bytes, *, side: int, max_pixels: int) -> Decoded:
    """Decode an image file.

    Args:
        data: the whole file, in one of `FORMATS`; of an animation the first frame counts.
        side: pixels that each side keeps at least where a JPEG is decoded at 1/8, 1/4 or 1/2 of its size.
        max_pixels: the largest width x height, checked from the header before any pixel is decoded. For GIF, TIFF and
            MPO twice Pillow's own limit, Image.MAX_IMAGE_PIXELS, holds too.

    Raises:
        UnsupportedImage: not one of the formats, or a kind of it that Pillow does not read correctly.
        UnreadableImage: truncated or damaged.
        ImageTooLarge: more pixels than the limit, or more memory than there is.
    """
    kinds = _kinds(data)
    if not kinds:
        formats, other = ", ".join(FORMATS), describe(data)
        if other:
            raise UnsupportedImage(f"this is {other}, which is not accepted: convert it to one of {formats}")
        raise UnsupportedImage(f"this is not an image in an accepted format: upload {formats}")
    if found := header_of(kinds[-1], data):  # before Pillow allocates anything
        _check_size(found.width, found.height, max_pixels)
    frames = 1
    if kinds == ["JPEG"] and data.count(b"Exif\0\0") > _EXIF_PARTS:
        data = _bare_jpeg(data)
    if kinds == ["PNG"]:
        data, frames = _pixels_of_png(data)
    size = "image"
    try:
        image = _open(data, kinds)
        size = f"image has {image.width} x {image.height} pixels, which"
        _check_size(*image.size, max_pixels)
        if 0 in image.size:
            raise UnreadableImage("the image has no pixels: upload another one")
        return _load(data, image, frames, side, max_pixels)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge("the image has more pixels than Pillow accepts: upload a smaller one") from error
    except Exception as error:  # Pillow's plugins raise exceptions of any kind for damaged files
        memory = needed(kinds[-1], data, side=side)
        if isinstance(error, MemoryError) or (memory and memory > most(max_pixels)):
            raise ImageTooLarge(
                f"the {size} as stored in this file takes too much memory or time to decode: "
                "upload a smaller one, or a JPEG"
            ) from error
        raise UnreadableImage("the image is truncated or damaged: save it again and upload it again") from error


def _kinds(data: bytes) -> list[str]:
    """The formats that a file may have by its first bytes."""
    return [name for name in FORMATS if (accept := Image.OPEN[name][1]) and accept(data[:16]) is True]


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image has {width} x {height} pixels, more than {max_pixels:,}: upload a smaller one")


def _open(data: bytes, kinds: list[str]) -> ImageFile.ImageFile:
    """Read the header by the plugin's class; Image.open would check Pillow's own limit of pixels."""
    failed: Exception | None = None
    for name in kinds:
        try:
            image: ImageFile.ImageFile = Image.OPEN[name][0](BoundedFile(data), "")
        except (Image.DecompressionBombError, MemoryError):
            raise
        except Exception as error:
            failed = error
        else:
            if name == "TIFF":
                check_tiff(BoundedFile(data), opened=True)
            return image
    # How Pillow says that it does not know the storage.
    if "TIFF" in kinds and re.search("unknown|samples per pixel|^[0-9]+$|index out of range", str(failed)):
        check_tiff(BoundedFile(data), opened=False)
    if "JPEG" in kinds and (bare := _bare_jpeg(data)) != data:
        return _open(bare, kinds)
    raise UnreadableImage("the image's header is damaged: save it again and upload it again") from failed


def _load(data: bytes, image: ImageFile.ImageFile, frames: int, side: int, max_pixels: int) -> Decoded:
    """Decode what was opened."""
    width, height = image.size
    animated = frames > 1 or (image.format not in ("MPO", "HEIF") and getattr(image, "is_animated", False))
    if animated:
        image.seek(0)
    if image.format == "PNG":
        _load_png(data, image)
    orientation = _orientation(image)
    scale = 1.0
    if image.format == "TIFF":
        tile = correct_tiff(image)
        if tile:
            _check_size(*tile, max_pixels)  # libtiff decodes whole tiles, however small the image is
        # Pillow would turn a copy of all of it.
        image.getexif()[_ORIENTATION_TAG] = 1
        if orientation >= 5:
            width, height = height, width
    elif image.format in ("JPEG", "MPO") and (drafted := image.draft(image.mode, (side, side))):
        scale = width / drafted[1][2]
    try:
        image.load()
    except OSError:
        if image.format not in ("JPEG", "MPO") or not _only_the_end_is_missing(data, image):
            raise
    if image.format == "PNG":
        _correct_transparency(data, image)
    return _upright(image, animated, orientation, (scale, width, height))


def _orientation(image: Image.Image) -> int:
    """The orientation of the stored image, 1 to 8, from its EXIF data; 1 if that is damaged or large."""
    try:
        if len(image.info.get("exif", b"")) > _ORIENTATION_BYTES:  # Pillow would make an object of each number in it
            image.info["exif"] = image.info["exif"][:_ORIENTATION_BYTES]
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except MemoryError:
        raise
    except Exception:
        return 1
    return orientation if orientation in UPRIGHT else 1


def _upright(image: Image.Image, animated: bool, orientation: int, scale: tuple[float, int, int]) -> Decoded:
    factor, width, height = scale
    notes = ["only the first frame counts"] if animated else []
    across, down = image.im.size
    if orientation >= 5:
        width, height, across, down = height, width, down, across
    left = across - width / factor if orientation in FROM_RIGHT else 0.0
    top = down - height / factor if orientation in FROM_BOTTOM else 0.0
    rgb: Image.Image | LargeImage = image
    plain = image.mode == "RGB" and orientation == 1 and not image.has_transparency_data
    if not plain or max(across, down) > STRIP * min(across, down):
        large = LargeImage(image, orientation, gain_of(image), (0, 0, across, down))
        rgb = large.rgb() if is_converted_at_once(across, down) else large
    return Decoded(rgb, width, height, notes, factor, left, top)


_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The length of tRNS by the colour type: 2 bytes of grey, 6 of RGB, up to 256 entries of a palette.
_PNG_TRANSPARENCY = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}


def _pixels_of_png(data: bytes) -> tuple[bytes, int]:
    """A PNG with only those chunks that decide its pixels, and the number of its frames.

    Pillow refuses an image for damage in other chunks, which libpng ignores, and expands compressed texts.
    """
    kept, at, frames, pixels = [_PNG_SIGNATURE], 8, 1, False
    colour = data[25] if len(data) > 25 else 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + length
        if kind == b"acTL" and length >= 4:
            frames = int.from_bytes(data[at + 8 : at + 12])
        wanted = kind in (b"IDAT", b"IEND") or (not pixels and kind == b"PLTE") or (at == 8 and kind == b"IHDR")
        if kind == b"eXIf" or (kind == b"tRNS" and not pixels and length in _PNG_TRANSPARENCY.get(colour, ())):
            wanted = zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end])
        if wanted:
            kept.append(data[at:end])
        pixels = pixels or kind == b"IDAT"
        at = len(data) if kind == b"IEND" else end
    return b"".join(kept), frames


def _load_png(data: bytes, image: ImageFile.ImageFile) -> None:
    """Load a PNG into `image`.

    Pillow takes an image for complete if its compressed stream is, however few rows it has.

    Raises:
        UnreadableImage: rows are missing.
    """
    last = image.height - 1
    if data[28] and last:  # interlaced: rows of odd numbers come last
        last -= 1 - last % 2
    place = (image.width // 2, last)
    for colour in (1, 0):
        other = image if colour else _open(data, ["PNG"])
        marked = Image.new(other.mode, other.size)
        marked.putpixel(place, colour)
        unset = marked.getpixel(place)
        other.im = marked.im
        other.load()
        if other.getpixel(place) != unset:
            return
    raise UnreadableImage("the image has too few pixels: save it again and upload it again")


def _correct_transparency(data: bytes, image: ImageFile.ImageFile) -> None:
    """Mark the transparent colour of a PNG whose bits are not those of Pillow's image.

    Pillow scales grey of fewer bits to eight and shortens 16 bits of RGB, but not the colour that is transparent.
    """
    depth, colour = data[24], image.info.get("transparency")
    if isinstance(colour, int) and depth < 8 and image.mode in ("1", "L"):
        image.info["transparency"] = colour * 255 // (2**depth - 1)
    elif isinstance(colour, tuple) and depth == 16:
        low = _open(data, ["PNG"])  # the less significant bytes
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
        low.load()
        high_bytes, low_bytes = ([value >> shift & 255 for value in colour] for shift in (8, 0))
        alpha = np.asarray(image) != np.array(high_bytes, np.uint8)
        alpha |= np.asarray(low) != np.array(low_bytes, np.uint8)
        del image.info["transparency"]
        image.putalpha(Image.fromarray(alpha.any(axis=2).astype(np.uint8) * 255))


def _bare_jpeg(data: bytes) -> bytes:
    """A JPEG without the metadata that Pillow needs whole: libjpeg ignores it if it is short."""
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        metadata = 0xE0 <= data[at + 1] <= 0xEF
        if not metadata or (data[at + 4 : at + 9] in (b"JFIF\0", b"Adobe") and end - at >= 16):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _only_the_end_is_missing(data: bytes, image: ImageFile.ImageFile) -> bool:
    """Load a JPEG without its end marker into `image`, if its pixels are complete.

    Complete pixels are the same whatever follows them. libjpeg fills missing ones from the bytes that follow.
    """
    coefficients = set[tuple[int, int]]()  # those that the scans give in full, by component
    for scan in re.finditer(rb"\xff\xda", data):
        count = data[scan.end() + 2]
        components = data[scan.end() + 3 : scan.end() + 3 + 2 * count : 2]
        first, last, precision = data[scan.end() + 3 + 2 * count : scan.end() + 6 + 2 * count]
        if precision & 15 == 0:
            coefficients.update((component, place) for component in components for place in range(first, last + 1))
    if len(coefficients) < 64 * image.layers:  # type: ignore[attr-defined]
        return False
    whole = data.rstrip(b"\xff")
    found = []
    for filling in (b"\xaa", b"\x55"):
        other = _open(whole + filling * 128 + b"\xff\xd9", ["JPEG"])
        other.draft(image.mode, image.size)
        other.load()
        found.append(other)
    image.im, image.tile = found[0].im, []
    return found[0].size == image.size and found[0].tobytes() == found[1].tobytes()
