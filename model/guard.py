"""What a picture file may ask of us, found out from its bytes before Pillow decodes them."""

import io
import re
import struct
from typing import Literal

from model.errors import ImageTooLarge, UnreadableImage

# A file is read in no more pieces than these and one for each so many bytes: millions of empty blocks keep Pillow busy
# for minutes, while 20 MB of honest GIF come in pieces of some hundred bytes.
_PIECES, _PIECE_BYTES = 10_000, 32

# The markers of a JPEG that a length follows, and the end of the picture.
_SEGMENT = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")
_EOI, _SOS = 0xD9, 0xDA
# Most segments of a JPEG. Of large metadata each holds 64 KB; Pillow copies all EXIF before it for each piece of EXIF.
_SEGMENTS = 500
# A scan of 75 bytes goes over all pixels. Files have ten scans, with four colours 18; more than so many are taken only
# of smaller pictures.
_SCANS = 20

# The tags of a TIFF that tell the size of its tiles, and the bytes of an integer by its type there.
_TILE_TAGS = (322, 323)
_INTEGERS = {3: 2, 4: 4, 16: 8}


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


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises:
    ImageTooLarge: more than so many pixels.
    """
    if width * height > max_pixels:
        raise ImageTooLarge(f"the picture has {width} x {height} pixels, more than {max_pixels:,}: send a smaller one")


def check_scans(scans: int, width: int, height: int, max_pixels: int) -> None:
    """Raises:
    UnreadableImage: decoding so many scans of a picture of this size is more work than `_SCANS` of the largest.
    """
    if scans * width * height > _SCANS * max_pixels:
        raise UnreadableImage(f"the picture is stored in {scans} scans: save it anew and send it again")


def jpeg_scans(data: bytes) -> int:
    """How many scans the picture of a JPEG file has, found as libjpeg does; 0 for other files.

    The file may hold other things after the picture.

    Raises:
        UnreadableImage: more segments than `_SEGMENTS`.
    """
    if not data.startswith(b"\xff\xd8\xff"):
        return 0
    scans = segments = position = 0
    while match := _SEGMENT.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == _EOI:
            if scans:
                break
            continue  # tables only, and a picture after them
        position += max(2, int.from_bytes(data[position : position + 2]))
        scans += marker == _SOS
        segments += 1
        if segments > _SEGMENTS + 4 * scans:
            raise UnreadableImage("the picture's file is cut into too many segments: save it anew and send it again")
    return scans


def tiff_tile(data: bytes) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, 0 if it has none. libtiff decodes whole ones however small the picture is."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    big = 43 in data[2:4]
    word, count, step = (8, 8, 20) if big else (4, 2, 12)

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    directory = number(word, word)
    begins, sides = directory + count, dict.fromkeys(_TILE_TAGS, 0)
    for entry in range(begins, min(begins + step * number(directory, count), len(data)), step):
        tag = number(entry, 2)
        if tag in sides:
            size = _INTEGERS.get(number(entry + 2, 2), word + 1)
            if size > word:  # libtiff may read it, Pillow does not
                raise UnreadableImage("the size of the picture's tiles is damaged: save it anew and send it again")
            sides[tag] = max(sides[tag], number(entry + 4 + word, size))
    width, height = sides.values()
    return width, height


def check_avif(data: bytes, max_pixels: int) -> None:
    """libavif refuses 16,384 x 16,384 pixels and more without a word; this says why.

    Raises:
        ImageTooLarge: more than so many pixels.
    """
    if data[4:8] == b"ftyp" and (size := data.find(b"ispe")) > 0:
        width, height = struct.unpack(">II", data[size + 8 : size + 16].rjust(8, b"\0"))
        check_size(width, height, max_pixels)
