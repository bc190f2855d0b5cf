"""Which TIFFs Pillow reads as they are stored, and corrections for some that it does not."""

from typing import BinaryIO, cast

from PIL import ImageFile, ImagePalette, TiffImagePlugin

from model.errors import UnsupportedImage
from model.large import UNSIGNED, WHITE

# Tags of a TIFF.
_WIDTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _PLANES, _PALETTE, _TILES = (
    256, 258, 259, 262, 273, 277, 284, 320, 324,
)  # fmt: skip
_TILE_WIDTH, _TILE_HEIGHT, _EXTRA, _SAMPLE_FORMAT, _SUBSAMPLING = 322, 323, 338, 339, 530
_COLOURS = {0: "grey with 0 as white", 1: "grey", 2: "RGB", 3: "a palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_NUMBERS = {
    1: "integers",
    2: "signed integers",
    3: "floating-point numbers",
    5: "complex integers",
    6: "complex numbers",
}


def check_tiff(file: BinaryIO, *, opened: bool) -> None:
    """Check that Pillow reads the pixels of a TIFF as they are stored.

    Args:
        file: at its start.
        opened: whether Pillow has accepted its header.

    Raises:
        UnsupportedImage: it does not. The message names the storage.
    """
    head = file.read(8)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(head + file.read(8) if 43 in head[2:4] else head)
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
    places = (" in separate planes" if apart else "") + (", big-endian" if head[:2] == b"MM" else "")
    packed = TiffImagePlugin.COMPRESSION_INFO.get(compression, compression)
    raise UnsupportedImage(
        f"this TIFF stores {colour} as {f'{samples} x ' if samples > 1 else ''}{width}-bit {number}{places}, "
        f"compression {packed}, which is not accepted: convert it to PNG or JPEG"
    )


def correct_tiff(image: ImageFile.ImageFile) -> tuple[int, int] | None:
    """Correct how Pillow is about to read the pixels of a TIFF.

    Returns:
        The size of its tiles, if it has some.
    """
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
        image.info[WHITE] = white if tags.get(_PHOTOMETRIC) else 0
    if image.mode == "I" and tags.get(_SAMPLE_FORMAT, (1,))[0] == 1:
        image.info[UNSIGNED] = True
    if image.palette and max(tags[_PALETTE]) <= 255:  # as some programs write it, and libtiff reads it
        image.palette = ImagePalette.raw("RGB;L", bytes(tags[_PALETTE]))
    return (tags[_TILE_WIDTH], tags[_TILE_HEIGHT]) if _TILE_WIDTH in tags and _TILE_HEIGHT in tags else None
