"""Decoded pixels are right, or the file is refused with the name of what cannot be read."""

import io
import struct
import zlib
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from model.card import InputSpec
from model.decode import decode
from model.errors import ImageTooLarge, UnreadableImage, UnsupportedImage
from model.formats import header_of, is_small_and_plain
from model.image import preprocess
from tests.documents import ROOT
from tests.hostile import after_header, announcing, chunk, encoded, photo, segment, tiff

SIDE = 64
SPEC = InputSpec(resize=SIDE, crop=SIDE, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)
RAMP = np.tile(np.linspace(0, 1, SIDE), (SIDE, 1))

HEIC = (ROOT / "tests" / "model" / "files" / "cat.heic").read_bytes()

Pixels = NDArray[Any] | float


def decoded(data: bytes) -> NDArray[np.uint8]:
    """An image of `SIDE` x `SIDE` pixels, which the transform leaves as it is."""
    pixels: NDArray[np.uint8] = preprocess(data, SPEC, max_pixels=10**7).pixels[0]
    return pixels


def error(data: bytes, expected: Pixels) -> float:
    """The largest difference from the pixels expected, of 255."""
    return float(np.abs(decoded(data).astype(float) - expected).max())


def grey(values: NDArray[Any]) -> NDArray[Any]:
    """RGB of shares of white."""
    return np.repeat(values[..., None] * 255.0, 3, axis=-1)


# TIFF


def tiff_of(pixels: NDArray[Any], **options: Any) -> bytes:
    """A TIFF by tifffile, in several strips unless it has tiles."""
    if options.get("planarconfig") == "separate":
        pixels = np.moveaxis(pixels, -1, 0)
    if "tile" not in options:
        options["rowsperstrip"] = 16
    file = io.BytesIO()
    tifffile.imwrite(file, np.ascontiguousarray(pixels), metadata=None, **options)
    return file.getvalue()


STORAGES: list[dict[str, Any]] = [
    {"byteorder": order, **packed, **places}
    for order in "<>"
    for packed in ({}, {"compression": "adobe_deflate"}, {"compression": "adobe_deflate", "predictor": True})
    for places in ({}, {"tile": (32, 32)})
]
COLOURS: list[dict[str, Any]] = [
    {"photometric": "minisblack"},
    {"photometric": "miniswhite"},
    *(
        {"photometric": colours, "planarconfig": planes, "extrasamples": extra}
        for colours, extra in (("minisblack", [0]), ("minisblack", [2]), ("rgb", []), ("rgb", [0]), ("rgb", [2]))
        for planes in ("contig", "separate")
    ),
]
NUMBERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float16", "float32", "float64"]
# At least these are read, in each byte order.
READ = {
    ("uint8", "minisblack"), ("uint8", "miniswhite"), ("uint8", "rgb"), ("uint16", "minisblack"), ("uint16", "rgb"),
    ("int16", "minisblack"), ("int32", "minisblack"), ("float32", "minisblack"),
}  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
def test_a_tiff_has_the_right_pixels_or_is_refused_by_name(number: str) -> None:
    kind = np.dtype(number)
    full = 1.0 if kind.kind == "f" else np.iinfo(kind).max // (2 if kind.itemsize == 8 else 1)
    read = set[tuple[str, str]]()
    for colour in COLOURS:
        rgb = [RAMP, RAMP.T, 1 - RAMP] if colour["photometric"] == "rgb" else [RAMP]
        extra = colour.get("extrasamples", [])
        values = np.stack([*rgb, *[np.full_like(RAMP, 0.5)] * len(extra)], axis=-1)
        stored = 1 - values if colour["photometric"] == "miniswhite" else values
        stored = (stored * full).astype(kind) if kind.kind == "f" else np.rint(stored * full).astype(kind)
        expected = 255 * (values[..., :3] if len(rgb) == 3 else np.repeat(values[..., :1], 3, axis=-1))
        if extra == [2]:
            expected = 0.5 * expected + 127.5
        for storage in STORAGES:
            if storage.get("predictor") and (kind.kind == "f" or kind.itemsize == 8):
                continue
            if stored.shape[-1] == 1:
                data = tiff_of(stored[..., 0], **colour, **storage)
            else:
                data = tiff_of(stored, **colour, **storage)
            about = f"{number} {colour} {storage}"
            refusal = ""
            try:
                assert error(data, expected) < 2.1, about
                read.add((number, colour["photometric"]))
            except UnsupportedImage as refused:
                refusal = str(refused)
            name = f"{8 * kind.itemsize}-bit {'floating-point' if kind.kind == 'f' else ''}"
            assert not refusal or name.strip() in refusal, about
    assert {pair for pair in READ if pair[0] == number} <= read


@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("packed", [{}, {"compression": "adobe_deflate"}], ids=["raw", "deflate"])
@pytest.mark.parametrize("mode", ["CMYK", "LAB", "YCbCr"])
def test_other_colours_of_a_tiff(mode: str, packed: dict[str, str], planes: Literal["contig", "separate"]) -> None:
    image = photo(mode, (SIDE, SIDE))
    names = {"CMYK": "separated", "LAB": "cielab", "YCbCr": "ycbcr"}
    for factor in (1, 257) if mode == "CMYK" else (1,):
        stored = np.asarray(image).astype(np.uint16 if factor > 1 else np.uint8) * factor
        for order in "<>":
            options: dict[str, Any] = {"photometric": names[mode], "planarconfig": planes, "byteorder": order}
            if mode == "YCbCr":
                options["subsampling"] = (1, 1)
            try:
                assert error(tiff_of(stored, **options, **packed), np.asarray(image.convert("RGB"))) < 2.1
            except UnsupportedImage:
                assert planes == "separate"


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_a_palette_of_a_tiff_may_have_8_bits(scale: int) -> None:
    palette = np.stack([np.arange(256)] * 3).astype(np.uint16) * scale
    indices = np.rint(RAMP * 255).astype(np.uint8)
    assert error(tiff_of(indices, photometric="palette", colormap=palette), grey(indices / 255)) == 0


def test_twelve_bits_are_scaled_to_eight() -> None:
    values = np.rint(RAMP[0] * 4095).astype(int)
    row = np.packbits((values[:, None] >> np.arange(11, -1, -1) & 1).astype(np.uint8)).tobytes()
    tags: dict[int, int | tuple[int, int, int]] = {
        256: SIDE, 257: SIDE, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: SIDE, 279: SIDE * len(row),
    }  # fmt: skip
    assert error(tiff(tags, row * SIDE), grey(RAMP)) < 1


@pytest.mark.parametrize(
    ("values", "tolerance"),
    [
        ((RAMP * 256).astype(np.float32), 1),
        ((RAMP * 1e30).astype(np.float32), 1),
        ((RAMP * 4095).astype(np.int32), 1),
        ((RAMP * (2**31 - 1)).astype(np.int32), 1),
        ((RAMP * (2**32 - 1)).astype(np.uint32), 1),
        ((RAMP * 255).astype(np.int32), 1),
    ],
    ids=["floats to 256", "large floats", "int32 to 4095", "int32 in full", "uint32 in full", "int32 to 255"],
)
def test_grey_of_a_wide_range_is_neither_dark_nor_clipped(values: NDArray[Any], tolerance: float) -> None:
    assert error(tiff_of(values, photometric="minisblack"), grey(RAMP)) <= tolerance


def test_one_infinite_value_leaves_the_others() -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.inf, -np.inf, np.nan
    pixels = decoded(tiff_of(values, photometric="minisblack"))
    assert pixels[0, :3, 0].tolist() == [255, 0, 0]
    assert np.abs(pixels[1:] - grey(RAMP)[1:]).max() < 1


def test_a_tiff_of_an_unknown_compression_is_refused_by_its_number() -> None:
    tags: dict[int, int | tuple[int, int, int]] = {
        256: SIDE, 257: SIDE, 258: 8, 259: 4242, 262: 1, 273: 8, 277: 1, 278: SIDE, 279: SIDE * SIDE,
    }  # fmt: skip
    with pytest.raises(UnsupportedImage, match=r"compression 4242.*: convert it to PNG or JPEG"):
        decoded(tiff(tags, bytes(SIDE * SIDE)))


# PNG


def png_of(values: NDArray[np.int64], depth: int, colour: int, *chunks: bytes) -> bytes:
    """A PNG of `SIDE` equal rows with these samples."""
    samples = values.reshape(-1)
    bits = (samples[:, None] >> np.arange(depth - 1, -1, -1) & 1).astype(np.uint8)
    body = zlib.compress((b"\0" + np.packbits(bits).tobytes()) * SIDE)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join([chunk(b"IHDR", header), *chunks, chunk(b"IDAT", body), chunk(b"IEND", b"")])


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_grey_of_a_png_shows_white_at_every_depth(depth: int) -> None:
    values = np.arange(SIDE) * 2**depth // SIDE
    for transparent in (values[SIDE // 3], values[-1], values[0] ^ 1):
        row = np.where(values == transparent, 1, values / (2**depth - 1))
        data = png_of(values, depth, 0, chunk(b"tRNS", struct.pack(">H", transparent)))
        assert error(data, grey(row)) < 1


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_of_a_png_shows_white_at_every_depth(depth: int) -> None:
    values = np.arange(SIDE) * 2**depth // SIDE
    values[20] = values[21] ^ 1  # differs in the last bit
    rgb = np.stack([values, values[::-1], values], axis=-1)
    rgb[20, 1] = rgb[21, 1]
    rgb[20, 2] = rgb[21, 2]
    data = png_of(rgb, depth, 2, chunk(b"tRNS", struct.pack(">HHH", *map(int, rgb[21]))))
    expected = rgb * 255 / (2**depth - 1)
    expected[21] = 255
    assert error(data, expected) <= 1


METADATA = (
    "pHYs", "cHRM", "sRGB", "gAMA", "iCCP", "tEXt", "zTXt", "iTXt", "tIME", "bKGD",
    "sBIT", "hIST", "sPLT", "acTL", "fcTL", "fdAT", "eXIf", "tRNS", "cICP", "vpAg",
)  # fmt: skip


@pytest.mark.parametrize("kind", METADATA)
def test_damaged_metadata_does_not_cost_a_png(kind: str) -> None:
    png = encoded(photo(size=(SIDE, SIDE)), "PNG")
    for damaged in (chunk(kind.encode(), b""), chunk(kind.encode(), b"a\0\0abc")[:-1] + b"?"):
        assert error(after_header(png, damaged), np.asarray(photo(size=(SIDE, SIDE)))) == 0


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_without_its_last_rows_is_unreadable(interlaced: bool) -> None:
    for rows in (SIDE - 1, SIDE // 2):
        short = png_of(np.full(SIDE, 1), 8, 0)
        body = zlib.compress((b"\0" + b"\1" * SIDE) * rows)
        at = short.index(b"IDAT") - 4
        header = short[:28] + bytes([interlaced])
        header += struct.pack(">I", zlib.crc32(header[12:29]))
        with pytest.raises(UnreadableImage):
            decoded(header + short[33:at] + chunk(b"IDAT", body) + chunk(b"IEND", b""))


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_png_whose_last_row_looks_unset_is_read(value: int) -> None:
    assert error(png_of(np.full(SIDE, value), 8, 0), value) == 0


# JPEG


@pytest.mark.parametrize("progressive", [False, True], ids=["baseline", "progressive"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_may_lack_its_end_marker_but_no_pixels(mode: str, progressive: bool) -> None:
    data = encoded(photo(mode, (SIDE, SIDE)), "JPEG", quality=95, progressive=progressive)
    expected = decoded(data)
    for complete in (data[:-1], data[:-2], data[:-2] + bytes(50), data[:-2] + b"more"):
        assert error(complete, expected) == 0
    for left_out in (4, 5, 6, 10, 50):
        with suppress(UnreadableImage):  # unless the bytes decide nothing
            assert error(data[:-left_out], expected) == 0
    with pytest.raises(UnreadableImage):
        decoded(data[: len(data) // 2])
    if progressive:  # whole scans are missing
        with pytest.raises(UnreadableImage):
            decoded(data[: data.rindex(b"\xff\xda")])


def test_a_large_jpeg_may_lack_its_end_marker_but_no_pixels() -> None:
    data = encoded(photo(size=(1200, 1000)), "JPEG", quality=90)
    assert error(data[:-2], decoded(data)) == 0
    for left_out in (10, 1000):
        with pytest.raises(UnreadableImage):
            decoded(data[:-left_out])


SHORT = [b"", b"JFIF\0", b"JFIF\0\1", b"Exif\0\0", b"ICC_PROFILE\0", b"ICC_PROFILE\0\1", b"MPF\0", b"MPF\0II*\0",
         b"Adobe\0", b"Photoshop 3.0\0008BIM\3", b"http://ns.adobe.com/xap/1.0/\0<x"]  # fmt: skip


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
def test_short_metadata_does_not_cost_a_jpeg(marker: int) -> None:
    data = encoded(photo(size=(SIDE, SIDE)), "JPEG")
    for body in SHORT:
        assert error(data[:2] + segment(marker, body) + data[2:], decoded(data)) == 0, body


# The rest


@pytest.mark.parametrize("tag", [282, 283, 296, 305, 700, 33723, 34665, 34675, 34853])
def test_metadata_that_is_nowhere_does_not_cost_a_tiff(tag: int) -> None:
    tags: dict[int, int | tuple[int, int, int]] = {
        256: SIDE, 257: SIDE, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: SIDE, 279: SIDE**2, tag: (7, 5000, 2**30),
    }  # fmt: skip
    assert error(tiff(tags, b"\x21" * SIDE * SIDE), 0x21) == 0


def test_damaged_metadata_does_not_cost_a_webp() -> None:
    image = photo(size=(SIDE, SIDE))
    plain = encoded(image, "WEBP", lossless=True)
    damaged = encoded(image, "WEBP", lossless=True, exif=b"Exif\0\0MM\0*\0\0\0\x08xyz", xmp=b"<x", icc_profile=b"no")
    assert error(damaged, decoded(plain)) == 0
    assert Image.open(io.BytesIO(damaged)).info["icc_profile"] == b"no"


@pytest.mark.parametrize("size", [(300, 1100), (520, 550), (1100, 300), (12_000, 40), (40, 12_000)], ids=str)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_parts_of_a_large_image_are_converted_as_the_whole(size: tuple[int, int], orientation: int) -> None:
    """The same colours, transparent over white, as a small image has; Pillow's own resize is the reference."""
    spec = InputSpec(resize=32, crop=32, interpolation="bilinear", mean=(0.5,) * 3, std=(0.2,) * 3)
    dice = np.random.default_rng(0)
    stored = Image.fromarray(dice.integers(0, 256, (size[1], size[0], 4), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    upright = stored if turn is None else stored.transpose(Image.Transpose(turn))
    white = Image.new("RGB", upright.size, "white")
    white.paste(upright, mask=upright.getchannel("A"))
    found = preprocess(encoded(stored, "PNG", exif=exif), spec, max_pixels=50_000_000)
    assert (found.width, found.height) == upright.size
    expected = preprocess(encoded(white, "PNG"), spec, max_pixels=50_000_000)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    short = min(upright.size)
    if max(upright.size) <= 16 * short:
        whole = white.resize((32 * upright.width // short, 32 * upright.height // short), Image.Resampling.BILINEAR)
        left, top = round((whole.width - 32) / 2), round((whole.height - 32) / 2)
        np.testing.assert_array_equal(found.pixels[0], np.asarray(whole.crop((left, top, left + 32, top + 32))))


def test_a_second_header_of_a_png_is_ignored() -> None:
    png = encoded(photo("L", (SIDE, SIDE)), "PNG")
    assert error(png[:33] + announcing("PNG", 5000, 5000)[8:33] + png[33:], decoded(png)) == 0


def test_the_first_image_of_an_avif_sequence_is_used() -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (600, 400), colour) for colour in ("red", "blue")]
    frames[0].save(file, "AVIF", save_all=True, append_images=frames[1:], speed=10)
    image = preprocess(file.getvalue(), SPEC, max_pixels=10**6)
    assert image.warnings == ("only the first frame counts",)
    assert image.pixels[0, 16, 16, 0] > 240


# HEIC


def test_a_heic_photo_is_decoded() -> None:
    with Image.open(ROOT / "app" / "static" / "cat.jpg") as original:
        expected = np.asarray(original.convert("RGB").resize((160, 106)), float)
    found = decode(HEIC, side=32, max_pixels=160 * 106)
    assert (found.width, found.height, found.notes) == (160, 106, [])
    assert isinstance(found.image, Image.Image)
    assert np.abs(np.asarray(found.image, float) - expected).mean() < 6


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.95])
def test_a_truncated_heic_photo_is_refused(share: float) -> None:
    with pytest.raises(UnreadableImage):
        decode(HEIC[: int(share * len(HEIC))], side=32, max_pixels=10**6)


def test_a_heic_photo_that_announces_many_pixels_is_refused_by_its_header() -> None:
    size = struct.pack(">II", 160, 106)
    with pytest.raises(ImageTooLarge):
        decode(HEIC.replace(size, struct.pack(">II", 30_000, 30_000)), side=32, max_pixels=10**7)


# The header of a JPEG


def test_a_jpeg_with_bytes_between_its_segments_is_not_taken_for_small() -> None:
    """libjpeg skips these bytes, and finds another frame than a reader that takes them for a segment."""
    large = segment(0xC2, struct.pack(">BHHB", 8, 7000, 7000, 1) + b"\x01\x11\x00")
    small = b"\xc0" + struct.pack(">HBHHB", 11, 8, 8, 8, 1) + b"\x01\x11\x00\x00\xda" + bytes(8) + b"\x01"
    for skipped in (b"\x00\xe0", b"\xff\xd0", b"\xff\x01", b"\xff\xff"):
        data = b"\xff\xd8" + skipped + struct.pack(">H", len(large) + 2) + large + b"\x00" + small
        assert header_of("JPEG", data) is None
        assert not is_small_and_plain(data)


@pytest.mark.parametrize("marker", [b"\xff\xdb", b"\xff\xc0"])
def test_fill_bytes_before_the_segments_of_a_jpeg_are_accepted(marker: bytes) -> None:
    data = encoded(Image.new("RGB", (48, 40)), "JPEG")
    at = data.index(marker)
    found = decode(data[:at] + b"\xff" * 3 + data[at:], side=32, max_pixels=10**4)
    assert (found.width, found.height) == (48, 40)
