"""The memory that decoding an AVIF file takes, from its boxes and its AV1 headers.

The decoder dav1d allocates frames of the size in the AV1 sequence header, whatever size the boxes announce. Therefore
the sequence headers are read here.

Sources: ISO/IEC 14496-12 (boxes), AV1 Bitstream & Decoding Process Specification, sections 5.3 (OBU), 5.5 (sequence
header) and 5.9 (frame header).
"""

from collections.abc import Iterator
from typing import NamedTuple

from model.errors import UnreadableImage

# Boxes, items or OBUs, at most. Walking through millions of empty ones takes seconds.
_MOST_PARTS = 20_000

# Boxes that contain boxes, and the number of bytes before these.
_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0, b"mdia": 0, b"minf": 0, b"stbl": 0}

_KEY_FRAME, _SWITCH_FRAME = 0, 3
_SELECTED_PER_FRAME = 2
# dav1d keeps eight reference frames, the current frame and the output.
_MOST_FRAMES = 10
# Bytes that dav1d holds for each tile of a frame, of which a frame has at most 4,096 of at least 64 x 64 pixels.
_TILE, _MOST_TILES, _TILE_SIDE, _TILE_DATA = 15_000, 4_096, 64, 8
# Frames are multiples of so many pixels wide and high.
_BLOCK = 128
# Bytes per pixel of dav1d's other tables: block information, motion vectors, filter masks.
_TABLES = 0.9


class Needs(NamedTuple):
    """What the decoder of an AVIF file needs.

    Attributes:
        width: of the largest image in the file, pixels.
        height: likewise.
        frames: bytes of the frames that are decoded and of dav1d's tables.
    """

    width: int
    height: int
    frames: int


def avif_needs(data: bytes) -> Needs:
    """Read what the decoder of an AVIF file will allocate.

    Raises:
        UnreadableImage: the file has more parts than any encoder writes.
    """
    boxes = list(_boxes(data, 0, len(data)))
    sizes = [_pair(data, start + 4) for kind, start, end in boxes if kind == b"ispe"]
    samples = [*_items(data, boxes), *_first_samples(data, boxes)]
    if sum(map(len, samples)) > 2 * len(data):
        raise UnreadableImage("the image's file uses the same bytes repeatedly: save it again and upload it again")
    largest = 0.0
    frames = pixels = 0
    for sample in samples:
        sequence = _sequence(sample)
        sizes.append((sequence.width, sequence.height))
        largest = max(largest, sequence.pixel_bytes)
        padded = -(-sequence.width // _BLOCK) * -(-sequence.height // _BLOCK) * _BLOCK**2
        frames += int(padded * (sequence.pixel_bytes * sequence.copies + _TABLES))
        pixels += padded
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    if any(kind == b"grid" for kind in _item_kinds(data, boxes).values()):
        frames += int(width * height * (largest + 2))  # the canvas, with its alpha, beside its tiles
    tiles = min(_MOST_TILES, pixels // _TILE_SIDE**2, len(data) // _TILE_DATA)
    return Needs(width, height, frames + tiles * _TILE)


Box = tuple[bytes, int, int]
"""Type, and where the content begins and ends."""


def _boxes(data: bytes, start: int, end: int) -> Iterator[Box]:
    """All boxes, those within `_CONTAINERS` after the one that holds them."""
    waiting, count = [(start, end)], 0
    while waiting:
        start, end = waiting.pop()
        while start + 8 <= end:
            size, kind, head = _number(data, start, 4), data[start + 4 : start + 8], 8
            if size == 1:
                size, head = _number(data, start + 8, 8), 16
            last = end if size == 0 else min(end, start + size)
            if last < start + head:
                break
            count += 1
            if count > _MOST_PARTS:
                raise UnreadableImage("the image's file has too many boxes: save it again and upload it again")
            yield kind, start + head, last
            if kind in _CONTAINERS:
                waiting.append((start + head + _CONTAINERS[kind], last))
            start = last


def _number(data: bytes, start: int, size: int) -> int:
    return int.from_bytes(data[start : start + size])


def _pair(data: bytes, start: int) -> tuple[int, int]:
    return _number(data, start, 4), _number(data, start + 4, 4)


def _item_kinds(data: bytes, boxes: list[Box]) -> dict[int, bytes]:
    """The items' numbers and types, by the `infe` boxes."""
    kinds = dict[int, bytes]()
    for kind, start, end in boxes:
        if kind == b"iinf":
            wide = 4 if data[start] else 2
            for entry, first, _ in _boxes(data, start + 4 + wide, end):
                if entry == b"infe":
                    number = 4 if data[first] >= 3 else 2
                    kinds[_number(data, first + 4, number)] = data[first + 6 + number : first + 10 + number]
    return kinds


def _items(data: bytes, boxes: list[Box]) -> Iterator[bytes]:
    """The content of each AV1 item, by the `iloc` boxes."""
    kinds = _item_kinds(data, boxes)
    stored = next((start for kind, start, _ in boxes if kind == b"idat"), 0)
    for kind, start, end in boxes:
        if kind != b"iloc" or end < start + 8:
            continue
        version = data[start]
        sizes = data[start + 4], data[start + 5]
        offset_size, length_size, base_size, index_size = sizes[0] >> 4, sizes[0] & 15, sizes[1] >> 4, sizes[1] & 15
        index_size = index_size if version in (1, 2) else 0
        wide = 4 if version == 2 else 2
        count, at = _number(data, start + 6, wide), start + 6 + wide
        parts = 0
        for _ in range(count):
            item, at = _number(data, at, wide), at + wide
            method = 0
            if version in (1, 2):
                method, at = _number(data, at, 2) & 15, at + 2
            base, at = _number(data, at + 2, base_size), at + 2 + base_size
            extents, at = _number(data, at, 2), at + 2
            content = list[bytes]()
            for _ in range(extents):
                at += index_size
                first = base + _number(data, at, offset_size) + (stored if method == 1 else 0)
                length = _number(data, at + offset_size, length_size)
                at += offset_size + length_size
                parts += 1
                if parts > _MOST_PARTS or at > end:
                    raise UnreadableImage("the image's header is damaged: save it again and upload it again")
                if kinds.get(item) == b"av01":
                    content.append(data[first : first + length] if length else data[first:])
            if content:
                yield b"".join(content)


def _first_samples(data: bytes, boxes: list[Box]) -> Iterator[bytes]:
    """The first sample of each track of an image sequence."""
    places = (_number(data, s + 8, 8 if kind == b"co64" else 4) for kind, s, _ in boxes if kind in (b"stco", b"co64"))
    lengths = (_number(data, s + 4, 4) or _number(data, s + 12, 4) for kind, s, _ in boxes if kind == b"stsz")
    for place, length in zip(places, lengths, strict=False):
        yield data[place : place + length]


class _Bits:
    """The bits of some bytes, zeros after their end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & ((1 << count) - 1)

    def variable(self) -> None:
        """Skip a number of variable length, uvlc()."""
        zeros = 0
        while zeros < 32 and not self.read(1):
            zeros += 1
        self.read(zeros)


class _Sequence:
    """The fields of an item's AV1 headers that decide the size of its frames."""

    def __init__(self) -> None:
        self.width = self.height = 0
        self.pixel_bytes = 0.0
        self.frames = 0
        self.copied = False
        # How a frame header is to be read.
        self.reduced = True
        self.time_bits = self.number_bits = 0
        self.width_bits = self.height_bits = 0
        self.screen_content = self.integer_vectors = _SELECTED_PER_FRAME

    @property
    def copies(self) -> int:
        """Frames in memory at once. Film grain and super-resolution write to a copy."""
        return min(max(1, self.frames), _MOST_FRAMES) + self.copied

    def grow(self, width: int, height: int) -> None:
        """A frame of this size may be decoded."""
        if width * height > self.width * self.height:
            self.width, self.height = width, height

    def read_header(self, data: bytes) -> None:
        """A sequence header OBU."""
        bits = _Bits(data[:256])
        profile, _, self.reduced = bits.read(3), bits.read(1), bool(bits.read(1))
        self.time_bits = 0
        if self.reduced:
            bits.read(5)
        else:
            self._read_operating_points(bits)
        self.width_bits, self.height_bits = bits.read(4) + 1, bits.read(4) + 1
        self.grow(bits.read(self.width_bits) + 1, bits.read(self.height_bits) + 1)
        self.number_bits = 0
        if not self.reduced and bits.read(1):
            self.number_bits = bits.read(4) + 2
            self.number_bits += bits.read(3) + 1
        bits.read(3)
        if not self.reduced:
            self._read_tools(bits)
        super_resolution = bits.read(1)
        bits.read(2)
        self._read_colours(bits, profile)
        self.copied = self.copied or bool(super_resolution or bits.read(1))

    def _read_operating_points(self, bits: _Bits) -> None:
        delay_bits = 0
        if bits.read(1):  # timing
            bits.read(64)
            equal = bits.read(1)
            if equal:
                bits.variable()
            if bits.read(1):  # decoder model
                delay_bits = bits.read(5) + 1
                bits.read(37)
                time_bits = bits.read(5) + 1
                self.time_bits = 0 if equal else time_bits
        initial_delay = bits.read(1)
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read(1)
            if delay_bits and bits.read(1):
                bits.read(2 * delay_bits + 1)
            if initial_delay and bits.read(1):
                bits.read(4)

    def _read_tools(self, bits: _Bits) -> None:
        bits.read(4)
        ordered = bits.read(1)
        if ordered:
            bits.read(2)
        self.screen_content = _SELECTED_PER_FRAME if bits.read(1) else bits.read(1)
        self.integer_vectors = _SELECTED_PER_FRAME
        if self.screen_content and not bits.read(1):
            self.integer_vectors = bits.read(1)
        if ordered:
            bits.read(3)

    def _read_colours(self, bits: _Bits, profile: int) -> None:
        deep = bits.read(1)
        twelve = profile == 2 and deep and bits.read(1)
        grey = profile != 1 and bits.read(1)
        described = bits.read(24) if bits.read(1) else None
        if grey:
            bits.read(1)
            samples = 1.0
        elif described == 0x010D00:  # sRGB as it is, without subsampling
            samples = 3.0
            bits.read(1)
        else:
            bits.read(1)
            across = down = int(profile == 0)
            if profile == 2:
                across, down = 1, 0
                if twelve:
                    across = bits.read(1)
                    down = bits.read(1) if across else 0
            samples = 1 + 2 / (1 + across) / (1 + down)
            if across and down:
                bits.read(2)
            bits.read(1)
        self.pixel_bytes = max(self.pixel_bytes, samples * (2 if deep else 1))

    def read_frame_header(self, data: bytes) -> None:
        """The beginning of a frame header OBU, for a size of its own."""
        bits = _Bits(data[:64])
        if self.reduced:
            return
        if bits.read(1):  # an earlier frame is shown
            return
        kind, shown = bits.read(2), bits.read(1)
        if shown:
            bits.read(self.time_bits)
        else:
            bits.read(1)
        if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and shown):
            bits.read(1)
        bits.read(1)
        screen_content = bits.read(1) if self.screen_content == _SELECTED_PER_FRAME else self.screen_content
        if screen_content and self.integer_vectors == _SELECTED_PER_FRAME:
            bits.read(1)
        bits.read(self.number_bits)
        if kind == _SWITCH_FRAME or bits.read(1):
            # An upper bound: the size itself follows fields that depend on earlier frames.
            self.grow(1 << self.width_bits, 1 << self.height_bits)


def _sequence(sample: bytes) -> _Sequence:
    """Read the OBUs of an item."""
    found, at, count = _Sequence(), 0, 0
    while at < len(sample):
        head = sample[at]
        at += 2 if head & 4 else 1
        size = len(sample) - at
        if head & 2:
            size, at = _leb128(sample, at)
        content, at = sample[at : at + min(size, 256)], at + size
        match head >> 3 & 15:
            case 1:  # sequence header
                found.read_header(content)
            case 3 | 6:  # frame header, frame
                found.frames += 1
                found.read_frame_header(content)
        count += 1
        if count > _MOST_PARTS:
            raise UnreadableImage("the image's file has too many parts: save it again and upload it again")
    return found


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = 0
    for number, byte in enumerate(data[at : at + 8]):
        value |= (byte & 127) << 7 * number
        if not byte & 128:
            return value, at + number + 1
    return value, at + 8
