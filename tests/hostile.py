"""Hostile images, and the response that each should get."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

SIZE = (96, 64)
"""Of the images that are read: large and oblong enough for several views."""

OK, TOO_LARGE, UNSUPPORTED, UNREADABLE = 200, 413, 415, 422


@dataclass(frozen=True)
class Sample:
    """One file.

    Attributes:
        name: what is wrong with it.
        data: the file.
        status: of the documented response.
        size: width and height in the result, if it is accepted.
        warnings: in the result, if it is accepted.
    """

    name: str
    data: bytes
    status: int
    size: tuple[int, int] = SIZE
    warnings: tuple[str, ...] = ()


def photo(mode: str = "RGB", size: tuple[int, int] = SIZE) -> Image.Image:
    """An image of soft noise, the same each time."""
    noise = np.random.RandomState(0).randint(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of Pillow's format `kind`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def after_header(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with more chunks."""
    return png[:33] + b"".join(chunks) + png[33:]


def segment(marker: int, body: bytes) -> bytes:
    """Of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def tiff(
    tags: dict[int, int | tuple[int, int, int]],
    body: bytes = b"",
    *,
    after: int = 0,
    order: str = "<",
    big: bool = False,
) -> bytes:
    """A TIFF of one directory.

    Args:
        tags: to a number, or to type, count and what stands in the field of the value.
        body: behind the header, at 8 (at 16 if `big`).
        after: where the next directory is.
        order: "<" or ">".
        big: BigTIFF.
    """
    mark = {"<": b"II", ">": b"MM"}[order]
    at = (16 if big else 8) + len(body)
    head = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, at) if big else (42, at)))
    entries = [(tag, *(value if isinstance(value, tuple) else (4, 1, value))) for tag, value in sorted(tags.items())]
    directory = struct.pack(order + ("Q" if big else "H"), len(entries))
    directory += b"".join(struct.pack(order + ("HHQQ" if big else "HHII"), *entry) for entry in entries)
    return mark + head + body + directory + struct.pack(order + ("Q" if big else "I"), after)


def grey_tiff(width: int, height: int, *, compression: int = 1, **options: Any) -> bytes:
    """A TIFF of 8-bit grey that has as many bytes as an image of `SIZE` needs."""
    body = zlib.compress(bytes(SIZE[0] * SIZE[1])) if compression == 8 else bytes(SIZE[0] * SIZE[1])
    at = 16 if options.get("big") else 8
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: at, 277: 1, 278: height, 279: len(body)}
    return tiff(tags | options.pop("more", {}), body, **options)


def tiled_tiff(tile: tuple[int, int], *, compression: int = 5, kind: int = 4, **options: Any) -> bytes:
    """A TIFF of `SIZE` pixels with one tile of this size."""
    body = zlib.compress(bytes(64))
    strips: dict[int, int | tuple[int, int, int]] = {273: 16 if options.get("big") else 8, 279: len(body)}
    sizes: dict[int, int | tuple[int, int, int]] = {322: (kind, 1, tile[0]), 323: (kind, 1, tile[1])}
    tags = {256: SIZE[0], 257: SIZE[1], 258: 8, 259: compression, 262: 1, 277: 1} | strips | sizes
    return tiff(tags, body, **options)


def announcing(kind: str, width: int, height: int) -> bytes:
    """A small file of this format whose header announces another size.

    Args:
        kind: one of `FORMATS` of model/decode.py, or MPO, or how a WebP is stored: VP8, VP8L, VP8X.
        width: pixels.
        height: pixels.
    """
    return _ANNOUNCING[kind](width, height)


def _patched(data: bytes, start: int, new: bytes) -> bytes:
    return data[:start] + new + data[start + len(new) :]


def _png(width: int, height: int) -> bytes:
    data = encoded(photo(), "PNG")
    return data[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + data[24:29]) + data[33:]


def _jpeg(width: int, height: int, kind: str = "JPEG", **options: Any) -> bytes:
    data = encoded(photo(), kind, **options)
    return data.replace(struct.pack(">HH", *SIZE[::-1]), struct.pack(">HH", height, width), 1)


def _mpo(width: int, height: int) -> bytes:
    return _jpeg(width, height, "MPO", save_all=True, append_images=[photo()])


def _gif(width: int, height: int) -> bytes:
    return _patched(encoded(photo(), "GIF"), 6, struct.pack("<HH", width, height))


def _bmp(width: int, height: int) -> bytes:
    return _patched(encoded(photo(), "BMP"), 18, struct.pack("<ii", width, height))


def _avif(width: int, height: int) -> bytes:
    data = encoded(photo(), "AVIF", speed=10)
    return _patched(data, data.index(b"ispe") + 8, struct.pack(">II", width, height))


def _vp8(width: int, height: int) -> bytes:
    data = encoded(photo(), "WEBP")
    return _patched(data, data.index(b"\x9d\x01\x2a") + 3, struct.pack("<HH", width, height))


def _vp8l(width: int, height: int) -> bytes:
    data = encoded(photo(), "WEBP", lossless=True)
    return _patched(data, data.index(b"VP8L") + 9, struct.pack("<I", width - 1 | height - 1 << 14))


def _vp8x(width: int, height: int) -> bytes:
    data = encoded(photo(), "WEBP", save_all=True, append_images=[photo().rotate(90)])
    sides = b"".join(struct.pack("<I", side - 1)[:3] for side in (width, height))
    return _patched(data, data.index(b"VP8X") + 12, sides)


_ANNOUNCING: dict[str, Callable[[int, int], bytes]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _vp8x,
    "VP8": _vp8,
    "VP8L": _vp8l,
    "GIF": _gif,
    "BMP": _bmp,
    "TIFF": grey_tiff,
    "AVIF": _avif,
    "MPO": _mpo,
}

BOMBS: dict[str, tuple[tuple[int, int], ...]] = {
    "JPEG": ((7_072, 7_072), (65_500, 65_500)),
    "PNG": ((7_072, 7_072), (60_000, 60_000), (2**31 - 1, 2**31 - 1)),
    "WEBP": ((7_072, 7_072), (16_384, 16_384), (65_535, 65_535)),
    "VP8": ((7_072, 7_072), (16_383, 16_383)),
    "VP8L": ((7_072, 7_072), (16_384, 16_384)),
    "GIF": ((7_072, 7_072), (65_535, 65_535)),
    "BMP": ((7_072, 7_072), (2**31 - 1, 2**31 - 1)),
    "TIFF": ((7_072, 7_072), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1_000)),
    "AVIF": ((7_072, 7_072), (16_384, 16_384), (65_535, 65_535)),
    "MPO": ((7_072, 7_072), (65_500, 65_500)),
}
"""Format (or how a WebP is stored) -> sizes to announce, each over the default limit of 50,000,000 pixels."""


def bombs() -> Iterator[Sample]:
    """Small files that would become large images."""
    for kind, sizes in BOMBS.items():
        for width, height in sizes:
            yield Sample(f"{kind} of {width} x {height}", announcing(kind, width, height), TOO_LARGE)
    for tile in ((32_768, 32_768), (2**16, 2**12)):
        yield Sample(f"TIFF with tiles of {tile[0]} x {tile[1]}", tiled_tiff(tile), TOO_LARGE)
    yield Sample("TIFF, big-endian, with a huge tile", tiled_tiff((2**15, 2**15), order=">"), TOO_LARGE)
    yield Sample("BigTIFF with a huge tile", tiled_tiff((2**15, 2**15), big=True), TOO_LARGE)
    # Pillow knows no type 17, libtiff does.
    yield Sample("TIFF whose tile size Pillow cannot read", tiled_tiff((2**15, 2**15), kind=17), UNREADABLE)


@dataclass(frozen=True)
class Heavy:
    """A small file that takes much memory or time to decode.

    Attributes:
        name: what it is.
        make: the file.
        refused: whether it may be refused, because its decoder takes too much.
    """

    name: str
    make: Callable[[], bytes]
    refused: bool = False


def blank_png(width: int, height: int, depth: int, colour: int, *chunks: bytes, interlaced: bool = False) -> bytes:
    """A PNG of zeros, compressed a thousand times, with the filter that takes longest."""
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    packer, packed = zlib.compressobj(1), list[bytes]()
    for left, top, across, down in passes:
        columns, rows = -(-max(0, width - left) // across), -(-max(0, height - top) // down)
        line = b"\4" + bytes(-(-columns * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8))
        lines = max(1, 2**20 // len(line))
        while columns and rows > 0:
            packed.append(packer.compress(line * min(rows, lines)))
            rows -= lines
    body = b"".join([*packed, packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", body), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _blank(mode: str, size: tuple[int, int], kind: str, **options: Any) -> bytes:
    return encoded(Image.new(mode, size), kind, **options)


def _blank_palette(size: tuple[int, int], kind: str, **options: Any) -> bytes:
    image = Image.new("P", size)
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    return encoded(image, kind, **options)


def _one_strip(width: int, height: int) -> bytes:
    """A TIFF of RGB in a single strip, which libtiff decodes at once."""
    body = zlib.compress(bytes(3 * width * height), 1)
    tags: dict[int, int | tuple[int, int, int]] = {
        256: width, 257: height, 258: 8, 259: 8, 262: 2, 273: 8, 277: 3, 278: height, 279: len(body),
    }  # fmt: skip
    return tiff(tags, body)


def _fax(width: int, height: int) -> bytes:
    """A TIFF of one bit, whose decoder keeps an array for the runs of a line."""
    tags: dict[int, int | tuple[int, int, int]] = {
        256: width, 257: height, 258: 1, 259: 4, 262: 0, 273: 8, 277: 1, 278: height, 279: 64,
    }  # fmt: skip
    return tiff(tags, b"\xff" * 64)  # every line as the one before, which is white


def _damaged_fax(width: int, height: int) -> bytes:
    """A TIFF of a kilobyte, for each line of which libtiff prints a warning."""
    body = random.Random(3).randbytes(1000)
    tags: dict[int, int | tuple[int, int, int]] = {
        256: width, 257: height, 258: 1, 259: 3, 262: 0, 273: 8, 277: 1, 278: height, 279: len(body),
    }  # fmt: skip
    return tiff(tags, body)


def _many_strips(count: int) -> bytes:
    """A TIFF whose strips, of a line each, are all the same bytes: Pillow makes an object of each."""
    offsets = struct.pack("<I", 8) * count
    tags: dict[int, int | tuple[int, int, int]] = {
        256: 8, 257: count, 258: 8, 259: 1, 262: 1, 273: (4, count, 8), 277: 1, 278: 1, 279: (4, count, 8),
    }  # fmt: skip
    return tiff(tags, offsets)


def _runs(width: int, height: int) -> bytes:
    """A BMP in run lengths, of which Pillow fills the rest of a line in Python."""
    header = struct.pack("<IiiHHIIIIII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    body = b"\1\0\0\0" * height + b"\0\1"
    offset = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + bytes(1024) + body


def _avif_of_another_size(width: int, height: int) -> bytes:
    """An AVIF whose boxes announce a small image and whose AV1 header a large one."""
    data = _blank("RGB", (width, height), "AVIF", speed=10, quality=10)
    return _patched(data, data.index(b"ispe") + 8, struct.pack(">II", 100, 100))


def _texts(count: int) -> bytes:
    """A PNG with compressed texts of a megabyte of characters, of which Pillow takes four bytes each."""
    text = zlib.compress(("x" * 1_000_000 + "\U0001f600").encode(), 9)
    return after_header(encoded(photo(), "PNG"), *[chunk(b"iTXt", b"a\0\1\0\0\0" + text)] * count)


def _constant_webp(width: int, height: int) -> bytes:
    """A lossless WebP of one colour, which has 34 bytes at any size."""
    data = bytearray(encoded(Image.new("RGB", (16, 16)), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", width - 1 | height - 1 << 14 | data[24] >> 4 << 28)
    return bytes(data)


def _two_frames(size: tuple[int, int]) -> bytes:
    """A lossless animation with alpha."""
    frames = [Image.new("RGBA", size, (1, 2, 3, alpha)) for alpha in (4, 200)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True, method=0, quality=0)


def _turned(data: bytes) -> bytes:
    """Add EXIF data with an orientation of 6 to a PNG."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return after_header(data, chunk(b"eXIf", exif.tobytes()[6:]))


_PALETTE = chunk(b"PLTE", bytes(range(256)) * 3), chunk(b"tRNS", bytes(range(256)))

HEAVY = (
    Heavy("PNG of one bit, 1 x 50,000,000", lambda: blank_png(1, 50_000_000, 1, 0), refused=True),
    Heavy("PNG of grey and alpha, 1 x 50,000,000", lambda: blank_png(1, 50_000_000, 8, 4), refused=True),
    Heavy("PNG of RGBA, 50,000,000 x 1", lambda: blank_png(50_000_000, 1, 8, 6), refused=True),
    Heavy("PNG of RGBA in 16 bits", lambda: blank_png(7_071, 7_071, 16, 6), refused=True),
    Heavy("PNG of one bit, 8 x 6,250,000", lambda: blank_png(8, 6_250_000, 1, 0)),
    Heavy("PNG of grey, 50,000,000 x 1", lambda: blank_png(50_000_000, 1, 8, 0)),
    Heavy("PNG of grey and alpha, 100 x 500,000", lambda: blank_png(100, 500_000, 8, 4)),
    Heavy("PNG of grey and alpha, turned", lambda: _turned(blank_png(1_700, 29_411, 8, 4))),
    Heavy("PNG of 16 bits", lambda: blank_png(7_071, 7_071, 16, 0)),
    Heavy("PNG of a palette with transparency", lambda: blank_png(1_700, 29_411, 8, 3, *_PALETTE)),
    Heavy("PNG of RGBA, interlaced", lambda: blank_png(7_071, 7_071, 8, 6, interlaced=True)),
    Heavy("PNG of RGBA in 16 bits, interlaced", lambda: blank_png(6_000, 6_000, 16, 6, interlaced=True)),
    Heavy("PNG with 60 compressed texts", lambda: _texts(60)),
    Heavy("TIFF of floats", lambda: _blank("F", (7_071, 7_071), "TIFF", compression="tiff_adobe_deflate")),
    Heavy("TIFF of floats, 8 x 6,250,000", lambda: _blank("F", (8, 6_250_000), "TIFF", compression="tiff_lzw")),
    Heavy("TIFF in one strip", lambda: _one_strip(5_000, 6_000)),
    Heavy("TIFF in one strip, larger", lambda: _one_strip(7_000, 7_000), refused=True),
    Heavy("TIFF in JPEG", lambda: _blank("YCbCr", (7_071, 7_071), "TIFF", compression="jpeg")),
    Heavy("TIFF in CIELAB", lambda: _blank("LAB", (5_000, 4_900), "TIFF", compression="tiff_adobe_deflate")),
    Heavy("TIFF by fax, 50,000,000 x 1", lambda: _fax(50_000_000, 1), refused=True),
    Heavy("TIFF by fax, 10,000,000 x 5", lambda: _fax(10_000_000, 5)),
    Heavy("TIFF of 3,000 strips", lambda: _many_strips(3_000)),
    Heavy("JPEG of CMYK", lambda: _blank("CMYK", (7_071, 7_071), "JPEG")),
    Heavy("JPEG of CMYK, too low to be reduced", lambda: _blank("CMYK", (65_500, 255), "JPEG")),
    Heavy("JPEG, progressive", lambda: _blank("RGB", (7_071, 7_071), "JPEG", progressive=True, subsampling=0)),
    Heavy("JPEG of CMYK, progressive", lambda: _blank("CMYK", (6_200, 6_200), "JPEG", progressive=True)),
    Heavy("JPEG of CMYK, progressive, larger", lambda: _blank("CMYK", (7_071, 7_071), "JPEG", progressive=True), True),
    Heavy("JPEG of 25 scans", lambda: many_scans(25, (6_300, 6_300))),
    Heavy("WebP of 34 bytes", lambda: _constant_webp(16_383, 1_600), refused=True),
    Heavy("WebP of 34 bytes, larger", lambda: _constant_webp(16_383, 3_051), refused=True),
    Heavy("WebP, animated", lambda: _two_frames((5_000, 5_000)), refused=True),
    Heavy("GIF with a hole", lambda: _blank_palette((7_071, 7_071), "GIF", transparency=3, disposal=2)),
    Heavy("AVIF", lambda: _blank("RGBA", (4_900, 4_900), "AVIF", speed=10, quality=10)),
    Heavy("AVIF of colours in full", lambda: _blank("RGB", (4_900, 4_900), "AVIF", speed=10, subsampling="4:4:4")),
    Heavy("AVIF that lies about its size", lambda: _avif_of_another_size(7_500, 6_500), refused=True),
    Heavy("BMP in run lengths", lambda: _runs(100_000, 99)),
    Heavy("TIFF by fax, damaged", lambda: _damaged_fax(8, 6_000_000), refused=True),
    Heavy("BMP in run lengths, larger", lambda: _runs(50_000_000, 1), refused=True),
)
"""Each within the default limit of 50,000,000 pixels."""


def many_scans(scans: int, size: tuple[int, int] = (2_000, 2_000)) -> bytes:
    """A progressive JPEG of grey with so many scans, each of some ten bytes."""
    data = encoded(Image.new("L", size), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * (scans - data.count(b"\xff\xda")) + data[-2:]


def many_pieces(size: int) -> Iterator[Sample]:
    """Files of so many bytes that keep a careless reader busy for minutes."""
    jpeg, gif, png = (encoded(photo(), kind) for kind in ("JPEG", "GIF", "PNG"))
    first = gif.index(b",")

    def filled(piece: bytes) -> bytes:
        return piece * (size // len(piece))

    exif = segment(0xE1, b"Exif\0\0123")
    for name, data, status in (
        ("JPEG of empty segments", jpeg[:2] + filled(segment(0xE5, b"")) + jpeg[2:], OK),
        ("JPEG of EXIF in crumbs", jpeg[:2] + filled(segment(0xE1, b"Exif\0\0" + bytes(10))) + jpeg[2:], OK),
        ("JPEG of EXIF in pieces", jpeg[:2] + filled(segment(0xE1, b"Exif\0\0" + bytes(590))) + jpeg[2:], OK),
        (
            "JPEG of EXIF behind an end",
            jpeg[:2] + b"\xff\xd9" + filled(exif) + jpeg[2:],
            UNREADABLE,
        ),
        (
            "JPEG of EXIF in a marker without length",
            jpeg[:2] + b"\xff\xf0" + filled(exif),
            UNREADABLE,
        ),
        ("JPEG of filling", jpeg[:20] + b"\0" * size + jpeg[20:], UNREADABLE),
        ("GIF of empty comments", gif[:first] + filled(b"\x21\xfe\0") + gif[first:], UNREADABLE),
        ("GIF of short comments", gif[:first] + filled(b"\x21\xfe\x01x\0") + gif[first:], UNREADABLE),
        ("PNG of empty chunks", after_header(png, filled(chunk(b"teSt", b""))), OK),
    ):
        yield Sample(name, data, status)


def _metadata() -> Iterator[Sample]:
    """Much of it, or damaged."""
    png, jpeg = encoded(photo(), "PNG"), encoded(photo(), "JPEG")
    zeros = zlib.compress(bytes(50_000_000))
    yield Sample("PNG whose zTXt expands to 50 MB", after_header(png, chunk(b"zTXt", b"a\0\0" + zeros)), OK)
    itxt = chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)
    yield Sample("PNG whose iTXt expands to 50 MB", after_header(png, itxt), OK)
    small = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_000_000)))
    yield Sample("PNG of 80 texts of a megabyte", after_header(png, *[small] * 80), OK)
    yield Sample("PNG with a long text", after_header(png, chunk(b"tEXt", b"a\0" + b"b" * 900_000)), OK)
    icc = chunk(b"iCCP", b"a\0\0" + zeros)
    yield Sample("PNG whose colour profile expands to 50 MB", after_header(png, icc), OK)
    yield Sample("PNG with a damaged checksum", png[:29] + b"\0\0\0\0" + png[33:], UNREADABLE)
    exif = Image.Exif()
    exif[0x010E] = "x" * 65_000
    yield Sample("JPEG with 65 KB of EXIF", encoded(photo(), "JPEG", exif=exif), OK)
    blocks = segment(0xE1, b"Exif\0\0" + exif.tobytes()) + segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 50
    yield Sample("JPEG with 3 MB of EXIF", jpeg[:2] + blocks + jpeg[2:], OK)
    exif[0x010E] = "x" * 5_000_000
    for kind in ("PNG", "WEBP", "TIFF"):
        yield Sample(f"{kind} with 5 MB of EXIF", encoded(photo(), kind, exif=exif), OK)
    overlapping = tiff(dict.fromkeys(range(36864, 36864 + 4000), (7, 60000, 8)), bytes(20_000))[:65_000]
    yield Sample("JPEG whose EXIF tags overlap", jpeg[:2] + segment(0xE1, b"Exif\0\0" + overlapping) + jpeg[2:], OK)


def _directories() -> Iterator[Sample]:
    """TIFFs whose directories lead astray."""
    plain = grey_tiff(*SIZE)
    directory = struct.unpack("<I", plain[4:8])[0]
    frames = ("only the first frame counts",)
    yield Sample("TIFF", plain, OK)
    yield Sample("TIFF, big-endian", grey_tiff(*SIZE, order=">"), OK)
    yield Sample("BigTIFF", grey_tiff(*SIZE, big=True), OK)
    yield Sample("TIFF whose directory follows itself", grey_tiff(*SIZE, after=directory), OK)
    chain = b"".join(struct.pack("<HI", 0, len(plain) + 6 * (number + 1)) for number in range(20_000))
    deep = grey_tiff(*SIZE, after=len(plain)) + chain
    yield Sample("TIFF of 20,000 directories", deep, OK, warnings=frames)
    yield Sample("TIFF whose next directory is nowhere", grey_tiff(*SIZE, after=2**31), OK, warnings=frames)
    yield Sample("TIFF whose EXIF directory is its own", grey_tiff(*SIZE, more={0x8769: directory}), OK)
    shared = dict.fromkeys(range(40000, 60000), (7, 6000, 8))
    yield Sample("TIFF of 20,000 tags of the same bytes", grey_tiff(*SIZE, more=shared), UNREADABLE)
    yield Sample("TIFF whose directory is nowhere", plain[:4] + b"\xff\xff\xff\x7f" + plain[8:], UNREADABLE)
    yield Sample("TIFF whose pixels are nowhere", grey_tiff(*SIZE, more={273: 2**31}), UNREADABLE)
    yield Sample("TIFF of an unknown compression", grey_tiff(*SIZE, compression=4242), UNSUPPORTED)
    yield Sample("TIFF of 65,535 colours", grey_tiff(*SIZE, more={277: 65_535}), UNSUPPORTED)


def _cut() -> Iterator[Sample]:
    """Truncated at several places."""
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "MPO"):
        options = {"save_all": True, "append_images": [photo()]} if kind == "MPO" else {}
        data = encoded(photo(), kind, **options)
        for share in (0.04, 0.3, 0.45 if kind == "MPO" else 0.7):
            yield Sample(f"{kind} cut at {share:.0%}", data[: int(len(data) * share)], UNREADABLE)


def _polyglots() -> Iterator[Sample]:
    """Images that are something else too are answered as images."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("index.html", "<script>alert(1)</script>")
    script = b"<html><script>alert(1)</script></html>"
    jpeg, png, gif = (encoded(photo(), kind) for kind in ("JPEG", "PNG", "GIF"))
    yield Sample("PNG and ZIP", png + archive.getvalue(), OK)
    yield Sample("JPEG and HTML", jpeg[:2] + segment(0xFE, script) + jpeg[2:] + script, OK)
    first = gif.index(b",")
    comment = b"\x21\xfe" + bytes([len(script)]) + script + b"\0"
    yield Sample("GIF and JavaScript", gif[:first] + comment + gif[first:] + b"=1;alert(1)", OK)
    yield Sample("JPEG and PNG", jpeg + png, OK)
    yield Sample("JPEG and a film full of what looks like scans", jpeg + b"\xff\xda\0\0" * 200_000, OK)
    yield Sample("ZIP and PNG", archive.getvalue() + png, UNSUPPORTED)
    yield Sample("PDF and JPEG", b"%PDF-1.7\n" + jpeg, UNSUPPORTED)


def _sizes() -> Iterator[Sample]:
    """None, and strips."""
    for kind, width, height in (
        ("JPEG", 0, 64), ("JPEG", 96, 0), ("PNG", 0, 64), ("PNG", 96, 0), ("PNG", 0, 0), ("BMP", 0, 0), ("GIF", 0, 0),
        ("TIFF", 0, 64), ("TIFF", 96, 0), ("AVIF", 0, 0), ("VP8", 0, 0),
    ):  # fmt: skip
        status = OK if kind == "GIF" else UNREADABLE  # its frame is what counts
        yield Sample(f"{kind} of {width} x {height}", announcing(kind, width, height), status)
    for size in ((1, 1), (1, 5_000), (5_000, 1)):
        for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
            small = (f"upscaled from {size[0]}x{size[1]}",)
            yield Sample(f"{kind} of {size[0]} x {size[1]}", encoded(photo(size=size), kind), OK, size, small)
    yield Sample("GIF whose frame outgrows its canvas", _gif(10, 10), OK)
    yield Sample("WebP whose frame outgrows its canvas", _vp8x(10, 10), UNREADABLE)
    # Its compressed stream is whole, so Pillow alone takes it for whole.
    yield Sample("PNG with too few pixels", _png(500, 500), UNREADABLE)
    yield Sample("BMP with too few pixels", _bmp(500, 500), UNREADABLE)
    yield Sample("TIFF with too few pixels", grey_tiff(500, 500), UNREADABLE)


def _animations() -> Iterator[Sample]:
    warnings = ("only the first frame counts",)
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        frames = [photo().rotate(90 * turn) for turn in range(1, 4)]
        yield Sample(
            f"{kind} of frames", encoded(photo(), kind, save_all=True, append_images=frames), OK, SIZE, warnings
        )
    gif = encoded(photo(), "GIF")
    first = gif.index(b",")
    many = gif[:-1] + gif[first:-1] * 500 + gif[-1:]
    yield Sample("GIF of 501 frames", many, OK, warnings=warnings)
    yield Sample("GIF whose second frame is cut", gif[:-1] + gif[first : first + 40], OK, warnings=warnings)
    mpo = encoded(photo(), "MPO", save_all=True, append_images=[photo()])
    yield Sample("MPO of two images", mpo, OK)


def _modes() -> Iterator[Sample]:
    """Colours that are no RGB of 8 bits."""
    yield Sample("JPEG in CMYK", encoded(photo("CMYK"), "JPEG"), OK)
    cmyk = encoded(photo("CMYK"), "JPEG")
    adobe = segment(0xEE, b"Adobe\0\x64\0\0\0\0\x02")
    yield Sample("JPEG in YCCK", cmyk[:2] + adobe + cmyk[2:].replace(segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"), b""), OK)
    yield Sample("TIFF in CMYK", encoded(photo("CMYK"), "TIFF"), OK)
    yield Sample("TIFF in CIELAB", encoded(photo("LAB"), "TIFF"), OK)
    yield Sample("JPEG in grey, progressive", encoded(photo("L"), "JPEG", progressive=True), OK)
    deep = Image.fromarray(np.asarray(photo("L")).astype(np.uint16) * 257)
    real = Image.fromarray(np.asarray(photo("L")).astype(np.float32) / 255)
    yield Sample("PNG of 16 bits", encoded(deep, "PNG"), OK)
    yield Sample("TIFF of 16 bits", encoded(deep, "TIFF"), OK)
    yield Sample("TIFF of 32 bits", encoded(photo("I"), "TIFF"), OK)
    yield Sample("TIFF of floats", encoded(real, "TIFF"), OK)
    wild = np.asarray(real).copy()
    wild[:20] = np.nan, np.inf, -np.inf, np.finfo(np.float32).max, *wild[0, 4:]
    yield Sample("TIFF of numbers that are none", encoded(Image.fromarray(wild), "TIFF"), OK)
    palette = photo().quantize(16)
    yield Sample("PNG of a palette with alpha", encoded(palette, "PNG", transparency=bytes(range(0, 256, 16))), OK)
    yield Sample("GIF of a palette with a hole", encoded(palette, "GIF", transparency=3), OK)
    for mode, kinds in {"1": ("PNG", "BMP", "TIFF"), "LA": ("PNG", "TIFF"), "RGBA": ("PNG", "TIFF", "WEBP")}.items():
        for kind in kinds:
            yield Sample(f"{kind} in {mode}", encoded(photo(mode), kind), OK)
    wide = encoded(palette, "PNG")
    at = wide.index(b"PLTE")
    short = wide[: at - 4] + chunk(b"PLTE", wide[at + 4 : at + 7]) + wide[at + 4 + 48 + 4 :]
    yield Sample("PNG of a palette too short", short, OK)


def _other_formats() -> Iterator[Sample]:
    """Known to Pillow or to the world, but not accepted."""
    for kind in ("ICO", "PPM", "JPEG2000", "TGA", "PCX", "SGI", "DDS", "ICNS", "PDF"):
        if kind in Image.SAVE:
            yield Sample(kind, encoded(photo(), kind), UNSUPPORTED)
    # Ghostscript would make the file if it ever saw this.
    yield Sample("EPS", encoded(photo(), "EPS"), UNSUPPORTED)
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, SIZE[1], SIZE[0], 8, 3) + bytes(12) + bytes(2 + 3 * 96 * 64)
    yield Sample("PSD", psd, UNSUPPORTED)
    yield Sample("SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', UNSUPPORTED)
    yield Sample(
        "XML that includes a file", b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>', UNSUPPORTED
    )
    yield Sample("text", b"hello, this is no image at all", UNSUPPORTED)
    yield Sample("a byte", b"\0", UNSUPPORTED)
    yield Sample("zeros", bytes(100_000), UNSUPPORTED)
    yield Sample("a Python pickle", b"\x80\x04\x95\x05\0\0\0\0\0\0\0]\x94.", UNSUPPORTED)
    yield Sample("an empty archive", b"PK\x05\x06" + bytes(18), UNSUPPORTED)
    for name, start in (("PNG", b"\x89PNG\r\n\x1a\n"), ("JPEG", b"\xff\xd8\xff"), ("GIF", b"GIF89a"), ("BMP", b"BM")):
        yield Sample(f"{name} of its first bytes", start, UNREADABLE)


@cache
def corpus() -> tuple[Sample, ...]:
    """All of them."""
    samples = [
        *bombs(),
        *many_pieces(1_000_000),
        Sample("JPEG of 100 scans", many_scans(100), OK, (2_000, 2_000)),
        Sample("JPEG of 400 scans, small", many_scans(400, SIZE), OK),
        *_metadata(),
        *_directories(),
        *_cut(),
        *_polyglots(),
        *_sizes(),
        *_animations(),
        *_modes(),
        *_other_formats(),
    ]
    assert len({sample.name for sample in samples}) == len(samples), "names are unique"
    return tuple(samples)
