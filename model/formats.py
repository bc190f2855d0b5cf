"""The accepted formats of images: their names, how large an image is by its header, and the memory to decode it.

A new format needs a row of `TABLE`, and Pillow's plugin for it.
"""

import re
import struct
from collections.abc import Callable
from typing import Final, Literal, NamedTuple


class Header(NamedTuple):
    """What the header of a file says.

    Attributes:
        width: pixels.
        height: likewise.
        plain: whether the decoder needs no more than the image and a few rows.
    """

    width: int
    height: int
    plain: bool = True


class Format(NamedTuple):
    """A format of images.

    Attributes:
        name: Pillow's.
        extensions: of its files, in lower case.
        header: reads the header of a file. It may raise `struct.error` or `IndexError` for a damaged one.
        memory: bytes for each pixel that decoding takes.
        memory_if_not_plain: likewise, for a file that is not plain.
    """

    name: str
    extensions: tuple[str, ...]
    header: Callable[[bytes], Header]
    memory: int
    memory_if_not_plain: int = 0


MEMORY_PER_PIXEL: Final = 6.4
"""Bytes for each pixel of the limit that decoding one image may take: 320 MB with a limit of 50,000,000 pixels."""

# What Python and the decoders allocate for an image of any size, and for each byte of the file.
_FIXED, _COPIES = 16_000_000, 4
# Small enough to be decoded in the event loop.
_SMALL_BYTES, _SMALL_SCANS = 16_384, 4
SMALL_PIXELS: Final = 4_096
"""Pixels of an image that is decoded in the event loop, at most."""
# Segments before the pixels of a JPEG, entries of a TIFF's directory and bytes before the sizes of an AVIF, at most.
_SEGMENTS, _ENTRIES, _BOXES = 500, 100, 65_536
_SOS = 0xDA
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


def _jpeg(data: bytes) -> Header:
    """Plain: neither progressive nor in several scans, for which libjpeg holds the coefficients."""
    at, size, sequential, components = 2, (0, 0), True, 0
    for _ in range(_SEGMENTS):
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        # libjpeg skips what is between two segments, and segments without a length.
        if data[at] != 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or marker == 0xFF:
            raise IndexError
        if marker in _FRAMES:
            size, sequential = struct.unpack(">HH", data[at + 5 : at + 9]), marker in (0xC0, 0xC1)
            components = data[at + 9]
        if marker == _SOS:
            return Header(size[1], size[0], sequential and data[at + 4] == components)
        at += 2 + length
    raise IndexError


def _png(data: bytes) -> Header:
    return Header(*struct.unpack(">II", data[16:24]))


def _gif(data: bytes) -> Header:
    """The canvas, or the first frame where that outgrows it."""
    width, height, flags = struct.unpack("<HHB", data[6:11])
    at = 13 + ((3 << (flags & 7) + 1) if flags & 128 else 0)
    for _ in range(_SEGMENTS):
        if data[at] == 0x2C:
            left, top, wide, high = struct.unpack("<HHHH", data[at + 1 : at + 9])
            return Header(max(width, left + wide), max(height, top + high))
        at += 2 if data[at] == 0x21 else data[at] + 1  # an extension, or a block of it
    return Header(width, height)


def _bmp(data: bytes) -> Header:
    if data[14] == 12:
        return Header(*struct.unpack("<HH", data[18:22]))
    width, height = struct.unpack("<ii", data[18:26])
    return Header(abs(width), abs(height))


def _webp(data: bytes) -> Header:
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
        return Header(width, height)
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    width, height = struct.unpack("<HH", data[26:30])
    return Header(width & 0x3FFF, height & 0x3FFF)


def _tiff(data: bytes) -> Header:
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    word, count, step = (8, 8, 20) if 43 in data[2:4] else (4, 2, 12)

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    directory = number(word, word)
    sizes = {256: 0, 257: 0}
    for entry in range(min(number(directory, count), _ENTRIES)):
        at = directory + count + step * entry
        if (tag := number(at, 2)) in sizes:
            sizes[tag] = number(at + 4 + word, {3: 2, 4: 4, 16: 8}.get(number(at + 2, 2), 4))
    return Header(sizes[256], sizes[257])


def _boxes(data: bytes) -> Header:
    """AVIF and HEIF: the largest of the sizes in ispe boxes."""
    sizes = [struct.unpack(">II", found[1]) for found in re.finditer(rb"ispe\0{4}(.{8})", data[:_BOXES], re.DOTALL)]
    return Header(*max(sizes, key=lambda size: size[0] * size[1]))


TABLE: Final = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), _jpeg, 6, 16),
    Format("PNG", (".png", ".apng"), _png, 6),
    Format("WEBP", (".webp",), _webp, 17),
    Format("GIF", (".gif",), _gif, 6),
    Format("BMP", (".bmp",), _bmp, 9),
    Format("TIFF", (".tif", ".tiff"), _tiff, 14),
    Format("AVIF", (".avif", ".avifs"), _boxes, 20),
    Format("HEIF", (".heic", ".heics", ".heif", ".heifs", ".hif"), _boxes, 20),
)
"""The accepted formats. JPEG includes MPO, and HEIF includes HEIC."""

EXTENSIONS: Final = frozenset(extension for row in TABLE for extension in row.extensions)
"""Extensions of the accepted formats, in lower case."""


_ROWS = {row.name: row for row in TABLE}


def header_of(name: str, data: bytes) -> Header | None:
    """What the header of a file says; None if it is damaged or unusual.

    Args:
        name: of its format.
        data: the whole file.
    """
    try:
        return _ROWS[name].header(data)
    except (struct.error, IndexError, ValueError):
        return None


def needed(name: str, data: bytes, *, side: int) -> int | None:
    """The memory that decoding a file takes by its header, bytes; None if the header cannot be read here.

    Args:
        name: of its format.
        data: the whole file.
        side: pixels that each side keeps at least where a JPEG is decoded at 1/8, 1/4 or 1/2 of its size.
    """
    header = header_of(name, data)
    if header is None:
        return None
    width, height, plain = header
    scale = 1
    if name == "JPEG":
        scale = next((scale for scale in (8, 4, 2) if min(width, height) >= scale * side), 1)
    memory = _ROWS[name].memory * width * height // scale**2
    return _FIXED + _COPIES * len(data) + memory + (0 if plain else _ROWS[name].memory_if_not_plain * width * height)


def most(max_pixels: int) -> int:
    """The memory that decoding one image may take, bytes."""
    return int(MEMORY_PER_PIXEL * max_pixels) + _FIXED


def is_small_and_plain(data: bytes) -> bool:
    """Whether a file is a PNG or a baseline JPEG of few pixels, so that it can be decoded at once."""
    if len(data) > _SMALL_BYTES:
        return False
    header = None
    if data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        header = header_of("PNG", data)
    elif data.startswith(b"\xff\xd8\xff") and data.count(b"\xff\xda") <= _SMALL_SCANS:
        header = header_of("JPEG", data)
    return header is not None and header.plain and header.width * header.height <= SMALL_PIXELS
