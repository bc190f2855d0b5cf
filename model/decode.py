"""From an image file's bytes to an upright image in RGB, within limits of pixels, memory and time."""

import re
import zlib
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin, features

from model.errors import ImageError, ImageTooLarge, UnreadableImage, UnsupportedImage
from model.guard import BoundedFile, Needs, held_bytes, needs, orientation_is_plain
from model.signatures import describe

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, pixels."""

Image.init()

FORMATS: tuple[str, ...] = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
    if name in Image.OPEN and (name.lower() not in features.modules or features.check(name.lower()))
)
"""The Pillow formats that are accepted, MPO as JPEG; AVIF and HEIF where this Pillow reads them."""

# Value of EXIF tag 0x0112 -> the operation that turns the stored image upright.
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
# The orientations whose upright image begins at the right or at the bottom end of the stored one.
_FROM_RIGHT, _FROM_BOTTOM = (2, 3, 6, 7), (3, 4, 7, 8)

# Pixels that are converted at once. Conversions take up to `_BAND_BYTES` for each.
_BAND, _BAND_BYTES = 1 << 18, 40
# Grey of 16 bits in 8.
_SIXTEEN_BITS = np.rint(np.arange(1 << 16, dtype=np.float32) * np.float32(1 / 257)).astype(np.uint8)
# In the `info` of an image: which number of grey is white, and that its integers have no sign.
_WHITE, _UNSIGNED = "white", "unsigned"
# What Python and the decoders allocate for an image of any size.
_FIXED = 2_000_000
# An image longer than this many times its width is cut to its middle before it is resized.
STRIP = 16


class LargeImage:
    """A decoded image that is converted to upright RGB in parts, because a converted copy would double the memory.

    It has the methods of Pillow's Image that the transforms use, with the same results.
    """

    def __init__(self, stored: Image.Image, orientation: int, gain: float | None, box: tuple[int, int, int, int]):
        """
        Args:
            stored: as decoded.
            orientation: 1 to 8, as in EXIF.
            gain: of `_gain`.
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
        if self._orientation in _FROM_RIGHT:
            left, right = width - right, width - left
        if self._orientation in _FROM_BOTTOM:
            top, bottom = height - bottom, height - top
        if self._orientation >= 5:
            left, top, right, bottom = top, left, bottom, right
        part = _to_rgb(self._stored.crop((left, top, right, bottom)), self._gain)
        turn = _UPRIGHT.get(self._orientation)
        return part if turn is None else part.transpose(turn)

    def reduce(self, factors: tuple[int, int]) -> Image.Image:
        """Averages of blocks of so many columns and rows."""
        across, down = factors
        columns = min(self.width, max(1, _BAND // (across * down)) * across)
        rows = max(1, _BAND // (columns * down)) * down
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
            columns = max(1, _BAND // self.height)
            once = Image.new("RGB", (self.width, size[1]))
            for left in range(0, self.width, columns):
                band = self.crop((left, 0, min(left + columns, self.width), self.height)).rgb()
                once.paste(band.resize((band.width, size[1]), resample), (left, 0))
        else:
            rows = max(1, _BAND // self.width)
            once = Image.new("RGB", (size[0], self.height))
            for top in range(0, self.height, rows):
                band = self.crop((0, top, self.width, min(top + rows, self.height))).rgb()
                once.paste(band.resize((size[0], band.height), resample), (0, top))
        return once.resize(size, resample)


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
    """Estimate how much memory decoding an image file and the transforms take at most, from its header only.

    Args:
        data: the whole file.
        side: as for `decode`.
        max_pixels: as for `decode`.

    Returns:
        Bytes.

    Raises:
        ImageError: as `decode`, as far as the header shows it.
    """
    found = inspect(data, side=side, max_pixels=max_pixels)[1]
    pixels, (short, long) = found.width * found.height, sorted((found.width, found.height))
    # The image while it is resized along one side, and the reduced image for further views.
    resized = side * min(long, STRIP * short)
    reduced = min(4 * pixels, 64 * side**2 * min(STRIP, -(-long // max(1, short))))
    return found.memory + resized + reduced


def decode(data: bytes, *, side: int, max_pixels: int) -> Decoded:
    """Decode an image file.

    Args:
        data: the whole file, in one of `FORMATS`; of an animation the first frame counts.
        side: pixels that each side keeps at least where a JPEG is decoded at 1/8, 1/4 or 1/2 of its size.
        max_pixels: the largest width x height, checked from the header before any pixel is decoded. Memory is limited
            in proportion. For GIF, TIFF and MPO twice Pillow's own limit, Image.MAX_IMAGE_PIXELS, holds too.

    Raises:
        UnsupportedImage: not one of the formats.
        UnreadableImage: truncated or damaged.
        ImageTooLarge: more pixels than the limit, or more memory or time than they may take.
    """
    frames = 1
    if data.startswith(_PNG_SIGNATURE):
        data, frames = _pixels_of_png(data)
    kinds, expected = inspect(data, side=side, max_pixels=max_pixels)
    if expected.width == 0 or expected.height == 0:
        raise UnreadableImage("the image has no pixels: upload another one")
    try:
        loader = _LOADERS.get(kinds[0])
        image, animated, orientation, scale = loader(data) if loader else _load(data, kinds, expected, side)
        return _upright(image, animated or frames > 1, orientation, scale)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge("the image has more pixels than Pillow accepts: upload a smaller one") from error
    except Exception as error:  # Pillow's plugins raise exceptions of any kind for damaged files
        raise UnreadableImage("the image is truncated or damaged: save it again and upload it again") from error


def inspect(data: bytes, *, side: int, max_pixels: int) -> tuple[list[str], Needs]:
    """Read from the header which formats the file may have, and what decoding and converting it takes.

    Args and errors are those of `decode`.
    """
    kinds = [name for name in FORMATS if (accept := Image.OPEN[name][1]) and accept(data[:16]) is True]
    if not kinds:
        formats, other = ", ".join(FORMATS), describe(data)
        if other:
            raise UnsupportedImage(f"this is {other}, which is not accepted: convert it to one of {formats}")
        raise UnsupportedImage(f"this is not an image in an accepted format: upload {formats}")
    found = needs(kinds[-1], data, side=side, max_pixels=max_pixels)
    bands = _BAND_BYTES * min(found.width * found.height, _BAND)
    return kinds, found._replace(memory=_FIXED + found.memory + bands)


class _Loaded(NamedTuple):
    """An image as stored.

    Attributes:
        image: decoded.
        animated: whether more frames follow.
        orientation: 1 to 8, as in EXIF.
        scale: pixels of the upload to one of `image`, and the width and height of the upload as stored.
    """

    image: Image.Image
    animated: bool
    orientation: int
    scale: tuple[float, int, int]


def _load(data: bytes, kinds: list[str], expected: Needs, side: int) -> _Loaded:
    """Decode by Pillow's plugin for the format."""
    image = _open(data, kinds)
    width, height = image.size
    if sorted(image.size) != sorted((expected.width, expected.height)) and image.format != "HEIF":
        raise UnreadableImage("the image's header contradicts itself: save it again and upload it again")
    animated = image.format != "MPO" and getattr(image, "is_animated", False)
    if animated:
        image.seek(0)
    if image.format == "PNG":
        _load_png(data, image)
    orientation = _orientation(image)
    scale = 1.0
    if image.format == "TIFF":
        # Pillow would turn a copy of all of it.
        image.getexif()[_ORIENTATION_TAG] = 1
        if orientation >= 5:
            width, height = height, width
    elif image.format in ("JPEG", "MPO") and (drafted := image.draft(image.mode, (side, side))):
        scale = width / drafted[1][2]
    if min(held_bytes(image.mode, *image.size), held_bytes(image.mode, *image.size[::-1])) > expected.held:
        raise UnreadableImage("the image's header contradicts itself: save it again and upload it again")
    if image.format == "TIFF":
        _correct_tiff(image)
    try:
        image.load()
    except OSError:
        if image.format not in ("JPEG", "MPO") or not _only_the_end_is_missing(data, image):
            raise
    if image.format == "PNG":
        _correct_transparency(data, image)
    return _Loaded(image, animated, orientation, (scale, width, height))


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
    places = [(image.width * part // 4, last) for part in range(4)]
    for colour in (1, 0):
        other = image if colour else _open(data, ["PNG"])
        marked = Image.new(other.mode, other.size)
        marked.paste(colour, (0, last, other.width, last + 1))
        unset = [marked.getpixel(place) for place in places]
        other.im = marked.im
        other.load()
        if [other.getpixel(place) for place in places] != unset:
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


# Tags of a TIFF.
_WIDTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _PLANES, _PALETTE, _TILES = (
    256, 258, 259, 262, 273, 277, 284, 320, 324,
)  # fmt: skip
_EXTRA, _SAMPLE_FORMAT, _SUBSAMPLING = 338, 339, 530
_COLOURS = {0: "grey with 0 as white", 1: "grey", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_NUMBERS = {
    1: "integers",
    2: "signed integers",
    3: "floating-point numbers",
    5: "complex integers",
    6: "complex numbers",
}


def _check_tiff(data: bytes, *, opened: bool) -> None:
    """Check that Pillow reads the pixels of a TIFF as they are stored.

    Args:
        data: the file.
        opened: whether Pillow has accepted its header.

    Raises:
        UnsupportedImage: it does not. The message names the storage.
    """
    file = BoundedFile(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if 43 in data[2:4] else 8))
        file.seek(tags.next)
        tags.load(file)
        readable = opened or (_WIDTH in tags and bool({_STRIPS, _TILES} & set(tags)))
    except Exception:
        readable = False
    if not readable:
        return
    colours, planes, compression = tags.get(_PHOTOMETRIC, 0), tags.get(_PLANES, 1), tags.get(_COMPRESSION, 1)
    bits, numbers, extra = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,)), tags.get(_EXTRA, ())
    samples = max(tags.get(_SAMPLES, 1), len(bits))
    apart, raw = planes == 2, compression == 1
    misread = (
        (numbers[0] == 2 and bits[0] == 8)
        or (numbers[0] == 3 and colours == 0)
        or (apart and (colours == 8 or (colours in (0, 1) and any(extra))))
        or (apart and raw and (colours == 6 or (colours == 5 and bits[0] == 16) or {0, 1} & set(extra)))
        or (raw and colours == 6 and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1))
    )  # fmt: skip
    if opened and not misread:
        return
    width = "/".join(map(str, sorted(set(bits))))
    colour = _COLOURS.get(colours, f"colours of type {colours}")
    number = _NUMBERS.get(numbers[0], "numbers of an unknown type")
    places = (" in separate planes" if apart else "") + (", big-endian" if data[:2] == b"MM" else "")
    packed = TiffImagePlugin.COMPRESSION_INFO.get(compression, compression)
    raise UnsupportedImage(
        f"this TIFF stores {colour} as {f'{samples} x ' if samples > 1 else ''}{width}-bit {number}{places}, "
        f"compression {packed}, which is not accepted: convert it to PNG or JPEG"
    )


def _correct_tiff(image: ImageFile.ImageFile) -> None:
    """Correct how Pillow is about to read the pixels of a TIFF."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    order = "L" if tags.prefix == b"II" else "B"
    tiles = []
    for tile in image.tile:
        raw, *others = cast("tuple[str, ...]", tile.args)
        if tile.codec_name == "libtiff":  # which has swapped the bytes
            raw = raw.replace(";32B", ";32N").replace(";16BS", ";16NS")
        elif len(raw) == 1 and tags.get(_PLANES) == 2 and tags[_BITS][0] == 16:  # one of several planes
            raw += f";16{order}"
        tiles.append(tile._replace(args=(raw, *others)))
    image.tile = tiles
    if image.mode.startswith("I;16"):
        white = 4095 if tags[_BITS][0] == 12 else 65535
        image.info[_WHITE] = white if tags.get(_PHOTOMETRIC) else 0
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        image.info[_UNSIGNED] = True
    if image.palette and max(tags[_PALETTE]) <= 255:  # as some programs write it, and libtiff reads it
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_PALETTE]))


def _load_webp(data: bytes) -> _Loaded:
    """Decode a WebP. Pillow's plugin keeps libwebp's two canvases while it makes a third copy and then a fourth."""
    from PIL import _webp

    decoder = _webp.WebPAnimDecoder(data)
    size, _, _, frames, stored = decoder.get_info()
    info = {"exif": decoder.get_chunk("EXIF"), "xmp": decoder.get_chunk("XMP ")}
    pixels, _ = decoder.get_next()
    del decoder
    image = Image.frombytes("RGBA" if stored == "RGBA" else "RGB", size, pixels, "raw", stored)
    image.info.update((name, value) for name, value in info.items() if value)
    return _Loaded(image, frames > 1, _orientation(image), (1.0, *size))


def _load_avif(data: bytes) -> _Loaded:
    """Decode an AVIF. Pillow's plugin keeps dav1d's frames while it copies the pixels, and starts a thread per core."""
    from PIL import _avif

    decoder = _avif.AvifDecoder(data, "auto", 1)
    size, frames, mode, _, _, orientation, _ = decoder.get_info()
    pixels, *_ = decoder.get_frame(0)
    del decoder
    return _Loaded(Image.frombytes(mode, size, pixels), frames > 1, orientation, (1.0, *size))


_LOADERS = {"WEBP": _load_webp, "AVIF": _load_avif}


def _open(data: bytes, kinds: list[str]) -> ImageFile.ImageFile:
    """Read the header by the plugin's class; Image.open would check Pillow's own limit of pixels."""
    failed: Exception | None = None
    for name in kinds:
        try:
            image: ImageFile.ImageFile = Image.OPEN[name][0](BoundedFile(data), "")
        except Image.DecompressionBombError:
            raise
        except Exception as error:
            failed = error
        else:
            if name == "TIFF":
                _check_tiff(data, opened=True)
            return image
    # How Pillow says that it does not know the storage.
    if "TIFF" in kinds and re.search("unknown|samples per pixel|^[0-9]+$|index out of range", str(failed)):
        _check_tiff(data, opened=False)
    if "JPEG" in kinds and (bare := _bare_jpeg(data)) != data:
        return _open(bare, kinds)
    raise UnreadableImage("the image's header is damaged: save it again and upload it again") from failed


def _orientation(image: Image.Image) -> int:
    """The orientation of the stored image, 1 to 8, from its EXIF data; 1 if that is damaged."""
    try:
        if not orientation_is_plain(image.info.get("exif", b"")):
            return 1
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _upright(image: Image.Image, animated: bool, orientation: int, scale: tuple[float, int, int]) -> Decoded:
    factor, width, height = scale
    notes = ["only the first frame counts"] if animated else []
    across, down = image.im.size
    if orientation >= 5:
        width, height, across, down = height, width, down, across
    left = across - width / factor if orientation in _FROM_RIGHT else 0.0
    top = down - height / factor if orientation in _FROM_BOTTOM else 0.0
    rgb: Image.Image | LargeImage = image
    plain = image.mode == "RGB" and orientation == 1 and not image.has_transparency_data
    if not plain or max(across, down) > STRIP * min(across, down):
        large = LargeImage(image, orientation, _gain(image), (0, 0, across, down))
        rgb = large.rgb() if across * down <= _BAND else large
    return Decoded(rgb, width, height, notes, factor, left, top)


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
    white = image.info.get(_WHITE, 65535)
    if white == 4095:
        values = np.minimum(values, 4095) * np.uint16(16) + (values >> 8)
    grey = _SIXTEEN_BITS[values]
    if white == 0:
        grey = 255 - grey
    if transparent is not None:
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _gain(image: Image.Image) -> float | None:
    """The factor that scales 32-bit integers and floating-point grey to 0 to 255, from the range of the values.

    The largest finite value is white if it is above 255. Smaller values are taken as they are. Floating-point values up
    to 1 are shares of white.
    """
    if image.mode not in ("I", "F"):
        return None
    width, height = image.im.size
    columns = min(width, _BAND)
    rows = max(1, _BAND // columns)
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
    values = np.array(numbers.view(np.uint32) if image.info.get(_UNSIGNED) else numbers, dtype=np.float32)
    if image.mode == "F":
        np.nan_to_num(values, copy=False, posinf=infinite, neginf=0)
    return np.maximum(values, 0, out=values)
