"""The memory and the work that decoding an image file takes, from its header.

A small file can announce any size. `needs` reads the size from the header and estimates the peak memory of Pillow's
decoder for the format. The constants were measured with Pillow 13. Tests compare the estimates with measured peaks.
"""

import io
import re
import struct
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from model.avif import avif_needs
from model.errors import ImageTooLarge, UnreadableImage

# A file is read in at most this many pieces, and one more for each 32 bytes. Millions of empty blocks keep Pillow busy
# for minutes, while an ordinary GIF of 20 MB has pieces of some hundred bytes.
_PIECES, _PIECE_BYTES = 10_000, 32

MEMORY_PER_PIXEL: Final = 6.4
"""Bytes for each pixel of the limit that decoding one image may take: 320 MB with a limit of 50,000,000 pixels."""

# Bytes of a PNG's scan lines for each pixel of the limit, at most. More take seconds to filter.
_LINES_PER_PIXEL = 6
# Pillow expands the run lengths of a BMP in Python, so the limit of pixels is divided by this.
_RUN_LENGTH_SHARE = 5
# Likewise for CIELAB, because Pillow builds a colour transform for each part that is converted.
_LAB_SHARE = 2

# The markers of a JPEG that a length follows, and the end of the image.
_SEGMENT = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
_EOI, _SOS, _APP1 = 0xD9, 0xDA, 0xE1
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
# Segments of a JPEG, at most. Large metadata has 64 KB in each. Pillow copies the EXIF data so far for each segment.
_SEGMENTS = 500
# A scan of 75 bytes covers all pixels. Files have ten scans, with four colours 18. More are accepted for smaller images
# only.
_SCANS = 20
# Bytes of a JPEG's EXIF data, at most, and of memory for each: Pillow makes an object of each number in an array.
_EXIF_BYTES, _EXIF_OBJECTS = 4_000_000, 40

# Pillow keeps at most 64 compressed texts of a PNG, of a megabyte each, and up to four bytes per character.
_TEXTS, _COMPRESSED_TEXT, _INTERNATIONAL_TEXT = 64, 1_100_000, 4_400_000

# Huffman tables of a lossless WebP: bytes of one group, number of groups at most, and the pixels and the bytes of the
# file that a group has at least.
_CODES, _CODE_GROUPS, _CODE_PIXELS, _CODE_BYTES = 5_800, 65_536, 16, 4

# Larger blocks are mapped, and unmapped when they are freed (M_MMAP_THRESHOLD's maximum).
_KEPT = 32 << 20

# The tags of a TIFF that describe how its pixels are stored.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _ROWS, _TILE_WIDTH, _TILE_HEIGHT, _SIGNED = (
    256, 257, 258, 259, 262, 277, 278, 322, 323, 339,
)  # fmt: skip
_STRIP_OFFSETS, _TILE_OFFSETS, _ORIENTATION = 273, 324, 0x0112
_SIZES = {_WIDTH, _HEIGHT, _SAMPLES, _ROWS, _TILE_WIDTH, _TILE_HEIGHT}
# The bytes of a number by its type in a TIFF, and those of whole numbers without a sign.
_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS, _TEXT_TYPES = {3: 2, 4: 4, 16: 8}, {1, 2, 6, 7}
# Pillow makes an object of each strip, and of each number in the arrays of tags below 400.
_STRIPS, _STRIP_OBJECT, _READ_TAGS = 65_536, 600, 400
_FAX, _JPEGS, _WEBP = {2, 3, 4}, {6, 7}, {50_001}
# Memory that libtiff allows libjpeg.
_TIFF_JPEG_BYTES = 110_000_000


class Needs(NamedTuple):
    """The memory and the work that decoding a file takes.

    Attributes:
        width: as stored, pixels.
        height: likewise.
        held: bytes of the decoded image in Pillow's memory.
        memory: bytes at the most, `held` and the decoder's own included.
        possible: bytes that a crafted file may take beyond `memory`, where the header does not show them; or 0.
        tile: width and height of a TIFF's tiles, which may be larger than the image.
        scans: of a JPEG, each of which goes over all pixels.
        work: factor on the pixels for the check of the limit, because the decoder is slow.
    """

    width: int
    height: int
    held: int
    memory: int
    possible: int = 0
    tile: tuple[int, int] = (0, 0)
    scans: int = 0
    work: float = 1.0


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


def held_bytes(mode: str, width: int, height: int) -> int:
    """Bytes that Pillow takes for an image of this mode: rows of multiples of four bytes, and a pointer for each."""
    return _held(1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4, width, height)


def _held(pixel: int, width: int, height: int) -> int:
    return height * (8 + -(-width * pixel // 4) * 4)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises:
    ImageTooLarge: more than so many pixels.
    """
    if width * height > max_pixels:
        raise ImageTooLarge(f"the image has {width} x {height} pixels, more than {max_pixels:,}: upload a smaller one")


def needs(kind: str, data: bytes, *, side: int, max_pixels: int) -> Needs:
    """Read what decoding a file takes from its header.

    Args:
        kind: Pillow's name of its format.
        data: the whole file.
        side: as for `decode`.
        max_pixels: the largest width x height.

    Raises:
        UnreadableImage: the header is damaged, or the file has more parts than any encoder writes.
        ImageTooLarge: more pixels than the limit, or more memory than `MEMORY_PER_PIXEL` for each pixel of the limit.
    """
    try:
        found = _jpeg(data, side) if kind == "JPEG" else _NEEDS.get(kind, _unknown)(data)
    except (IndexError, KeyError, struct.error) as error:
        raise UnreadableImage("the image's header is damaged: save it again and upload it again") from error
    width, height = found.width, found.height
    check_size(width, height, max_pixels)
    check_size(*found.tile, max_pixels)
    if found.scans * width * height > _SCANS * max_pixels:
        raise UnreadableImage(f"the image is stored in {found.scans} scans: save it again and upload it again")
    limit = int(MEMORY_PER_PIXEL * max_pixels) + _SMALL
    if found.memory > limit or found.work * width * height > max_pixels:
        raise ImageTooLarge(
            f"the image has {width} x {height} pixels, which as stored in this file take too much memory or time "
            "to decode: upload a smaller one, or a JPEG"
        )
    return found._replace(memory=max(found.memory, min(found.possible, limit)))


# Allowance for metadata where the limit of pixels is small.
_SMALL = 1_000_000


def _jpeg(data: bytes, side: int) -> Needs:
    """A JPEG. Markers are found as libjpeg does. The file may contain other data after the image."""
    frame, kind = b"", 0
    scans = segments = position = exif = header = 0
    several_scans = False
    while match := _SEGMENT.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == _EOI:
            if scans:
                break
            continue  # tables only, and an image after them
        length = max(2, int.from_bytes(data[position : position + 2]))
        if marker in _FRAMES and not frame:
            frame, kind = data[position + 2 : position + length], marker
        elif marker == _SOS:
            header = header or position
            several_scans = several_scans or data[position + 2] < frame[5]
            scans += 1
        elif marker == _APP1 and data[position + 2 : position + 6] == b"Exif":
            exif += length
        position += length
        segments += 1
        if segments > _SEGMENTS + 4 * scans:
            raise UnreadableImage("the image's file has too many segments: save it again and upload it again")
    if exif > _EXIF_BYTES:
        raise UnreadableImage("the image's EXIF data is too large: save it again without and upload it again")
    height, width, count = struct.unpack(">HHB", frame[1:6])
    samplings = [(frame[7 + 3 * number] >> 4, frame[7 + 3 * number] & 15) for number in range(count)]
    across, down = (max(1, *sides) for sides in zip((1, 1), *samplings, strict=True))
    coefficients = 0
    if kind in _PROGRESSIVE or several_scans:
        blocks = sum(-(-width // (8 * across)) * max(1, h) * -(-height // (8 * down)) * max(1, v) for h, v in samplings)
        coefficients = blocks * 64 * 2
    scale = min(width // side, height // side)
    scale = next((step for step in (8, 4, 2) if scale >= step), 1)
    held = _held(1 if count == 1 else 4, -(-width // scale), -(-height // scale))
    lines = width * count * 8 * down * 3
    metadata = 4 * (header or len(data)) + _EXIF_OBJECTS * exif
    return Needs(width, height, held, held + coefficients + lines + metadata, scans=scans)


_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _png(data: bytes) -> Needs:
    if data[12:16] != b"IHDR":
        raise UnreadableImage("the image's header is damaged: save it again and upload it again")
    width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
    channels = _PNG_CHANNELS.get(colour, 4)
    pixel = 4 if channels > 1 else 2 if depth > 8 else 1
    held = _held(pixel, width, height)
    # All other chunks may be metadata, which Pillow copies. Compressed texts expand.
    pixels, position = 0, 8
    for _ in range(_PIECES):
        if position >= len(data):
            break
        length = int.from_bytes(data[position : position + 4])
        if data[position + 4 : position + 8] == b"IDAT":
            pixels += length
        position += 12 + length
    texts = min(_TEXTS, data.count(b"iTXt")) * _INTERNATIONAL_TEXT + min(_TEXTS, data.count(b"zTXt")) * _COMPRESSED_TEXT
    line = -(-width * channels * depth // 8)
    metadata = 4 * max(0, len(data) - pixels)
    return Needs(
        width,
        height,
        held,
        held + 4 * line + metadata + texts,
        work=channels * depth / 8 / _LINES_PER_PIXEL,
    )


def _gif(data: bytes) -> Needs:
    width, height, flags = struct.unpack("<HHB", data[6:11])
    position = 13 + ((3 << (flags & 7) + 1) if flags & 128 else 0)
    in_blocks = False
    for _ in range(_PIECES + len(data) // _PIECE_BYTES):
        byte = data[position]
        if in_blocks:
            position += byte
            in_blocks = byte > 0
        elif byte == 0x2C:  # a frame, which may outgrow the screen
            left, top, wide, high = struct.unpack("<HHHH", data[position + 1 : position + 9])
            width, height = max(width, left + wide), max(height, top + high)
            break
        elif byte == 0x21:  # an extension, made of blocks
            position += 1
            in_blocks = True
        elif byte == 0x3B:
            break
        position += 1
    held = _held(1, width, height)
    return Needs(
        width, height, held, 2 * held + 3 * len(data)
    )  # the image, and the one that replaces it after the frame


def _bmp(data: bytes) -> Needs:
    runs = 0
    if int.from_bytes(data[14:18], "little") == 12:
        width, height, _, bits = struct.unpack("<HHHH", data[18:26])
    else:
        width, height, _, bits, runs = struct.unpack("<iiHHI", data[18:34])
    width, height = abs(width), abs(height)
    held = _held(1 if bits <= 8 else 4, width, height)
    if runs in (1, 2):
        return Needs(width, height, held, held + 4 * width * height, work=_RUN_LENGTH_SHARE)
    return Needs(width, height, held, held + 4 * 4 * width)


def _webp(data: bytes) -> Needs:
    kind = data[12:16]
    lossless = kind == b"VP8L"
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        lossless = b"VP8L" in data or b"ALPH" in data
    elif kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[26:30]))
    pixels = width * height
    # libwebp holds two canvases, and it copies the first to Python. It is then freed, and the copy becomes an image.
    canvases = 12 * pixels + 16 * 4 * width
    memory = canvases + (5 if kind == b"VP8X" else 2) * len(data)
    codes = min(_CODE_GROUPS, pixels // _CODE_PIXELS, len(data) // _CODE_BYTES) * _CODES if lossless else 0
    # While the codes are in memory, the second canvas is not. glibc keeps what is freed of less than `_KEPT` bytes.
    possible = memory + max(min(4 * pixels, _KEPT), codes - 4 * pixels) if lossless else 0
    return Needs(width, height, _held(4, width, height), memory, possible=possible)


def _avif(data: bytes) -> Needs:
    found = avif_needs(data)
    pixels = found.width * found.height
    channels = 4 if b"auxC" in data or b"auxi" in data else 3
    # libavif makes an RGB image of the frames, and Pillow copies it.
    memory = found.frames + 2 * channels * pixels + 3 * len(data)
    return Needs(found.width, found.height, _held(4, found.width, found.height), memory)


def _unknown(data: bytes) -> Needs:
    """HEIF, if a plugin of Pillow reads it: only the size is known, from the boxes."""
    found = avif_needs(data)
    pixels = found.width * found.height
    return Needs(found.width, found.height, _held(4, found.width, found.height), 24 * pixels + 4 * len(data))


class _Directory:
    """The first directory of a TIFF, or of EXIF.

    Attributes:
        values: by tag, the largest of the first whole numbers that its entries hold; of the tags below `_READ_TAGS`.
        counts: by tag, how many numbers its entries hold at most; of these tags.
        odd: tags whose values are of another type or too long to be read here.
        array_bytes: of all arrays that entries refer to.
    """

    def __init__(self, data: bytes) -> None:
        order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
        big = 43 in data[2:4]
        word, count, step = (8, 8, 20) if big else (4, 2, 12)

        def number(start: int, size: int) -> int:
            return int.from_bytes(data[start : start + size], order)

        directory = number(word, word)
        begins = directory + count
        self.values, self.counts, self.odd = dict[int, int](), dict[int, int](), set[int]()
        self.array_bytes = 0
        for entry in range(begins, min(begins + step * number(directory, count), len(data)), step):
            tag, kind, length = number(entry, 2), number(entry + 2, 2), number(entry + 4, word)
            bytes_each = _TYPES.get(kind, 1)
            where = entry + 4 + word
            if bytes_each * length > word:
                self.array_bytes += min(bytes_each * length, len(data))
                where = number(where, word)
            if tag >= _READ_TAGS:
                continue
            if kind not in _TEXT_TYPES:
                self.counts[tag] = max(self.counts.get(tag, 0), length)
            size = _INTEGERS.get(kind, word + 1)
            if size > word:
                self.odd.add(tag)
            else:
                found = max((number(where + size * place, size) for place in range(min(length, 8))), default=0)
                self.values[tag] = max(self.values.get(tag, 0), found)


def _tiff(data: bytes) -> Needs:
    directory = _Directory(data)
    tags, counts = directory.values, directory.counts
    if any(count > _STRIPS for count in counts.values()):
        raise UnreadableImage("the image's file has too many strips: save it again and upload it again")
    if directory.odd & _SIZES:  # libtiff may read them, Pillow does not
        raise UnreadableImage("the size of the image is damaged: save it again and upload it again")
    width, height = tags[_WIDTH], tags[_HEIGHT]
    samples, bits, compression = tags.get(_SAMPLES, 1), tags.get(_BITS, 1), tags.get(_COMPRESSION, 1)
    samples = max(samples, counts.get(_BITS, 1), 3 if tags.get(_PHOTOMETRIC) in (2, 6, 8) else 1)
    pixel = 1 if samples == 1 and bits <= 8 else 2 if samples == 1 and bits <= 16 and tags.get(_SIGNED, 1) == 1 else 4
    held = _held(pixel, width, height)
    tile_width, tile_height = tags.get(_TILE_WIDTH, 0), tags.get(_TILE_HEIGHT, 0)
    # libtiff decodes whole tiles, however small the image is.
    area = max(width * min(height, tags.get(_ROWS, height)), tile_width * tile_height)
    part = 0
    if compression != 1:
        part = 2 * -(-area * samples * bits // 8)
        if tags.get(_PHOTOMETRIC) == 6:
            part += 4 * area
        if compression in _FAX:
            part += 16 * max(width, tile_width)
        if compression in _JPEGS:
            part += min(_TIFF_JPEG_BYTES, 8 * area)
        if compression in _WEBP:
            part += 8 * area
    strips = counts.get(_STRIP_OFFSETS, 0) + counts.get(_TILE_OFFSETS, 0)
    memory = held + part + 4 * min(directory.array_bytes, len(data)) + _STRIP_OBJECT * strips
    work = _LAB_SHARE if tags.get(_PHOTOMETRIC) == 8 else 1
    return Needs(width, height, held, memory, tile=(tile_width, tile_height), work=work)


def orientation_is_plain(exif: bytes) -> bool:
    """Whether EXIF's orientation is one number. Pillow would make an object of each number of an array."""
    return _Directory(exif.removeprefix(b"Exif\0\0")).counts.get(_ORIENTATION, 0) < 16


_NEEDS: dict[str, Callable[[bytes], Needs]] = {
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "WEBP": _webp,
    "TIFF": _tiff,
    "AVIF": _avif,
}
