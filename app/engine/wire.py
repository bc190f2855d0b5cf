"""Frames between a front and the engine process, over a Unix socket.

A frame is a kind, the size of its payload, and the payload. Fields of fixed size are packed, pixels and outputs are raw
bytes, and the rest is JSON. Nothing is unpickled.

    front -> engine: ADMIT, CLASSIFY, GRAD_CAM, CLOSE, CALL, SEEN
    engine -> front: CATALOG, RESULT, MAPS, FAILED, RETURNED
"""

import asyncio
import json
import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from app.engine.admission import Load
from app.engine.api import Batched, Catalog, ModelInfo, Source
from app.engine.errors import (
    NotAlive,
    NotReady,
    QueueFull,
    SwapConflict,
    SwapInterrupted,
    SwapRefused,
    TooManyUploads,
    UnknownModel,
)
from app.feedback.store import StoreError
from model import EngineError, ModelCard, NotExplainable, Prediction

# Bytes that wait to be sent, beyond which a front admits no more images.
_MAX_UNSENT = 8_000_000

_HEAD = struct.Struct("<BQ")
# Number of the lease, images, deadline, and lengths of the name of the model and of its version.
_ADMIT = struct.Struct("<QIdHH")
# Numbers of the lease and of the call, images, whether maps are needed, and bytes of the JSON of the sources.
_CLASSIFY = struct.Struct("<QQI?I")
# Views, side and channels of an image.
_SHAPE = struct.Struct("<III")
# Number of the lease, of the call, index of the class.
_GRAD_CAM = struct.Struct("<QQI")
_NUMBER = struct.Struct("<Q")
# Number of the call, and the load.
_RESULT = struct.Struct("<QQqdd")
# Of an image: seconds queued and in its batch, score, in_distribution, views, height and width of its maps.
_PREDICTION = struct.Struct("<ddddIII")


class Kind(IntEnum):
    """What a frame is."""

    ADMIT = 1
    CLASSIFY = 2
    GRAD_CAM = 3
    CLOSE = 4
    CALL = 5
    SEEN = 6
    CATALOG = 7
    RESULT = 8
    MAPS = 9
    FAILED = 10
    RETURNED = 11


_KINDS = {kind.value: kind for kind in Kind}


class RemoteError(RuntimeError):
    """An error in the engine process that is in no table. Its log has the traceback."""


# By name, the errors that are the same in both processes.
_ERRORS: Mapping[str, type[Exception]] = {
    error.__name__: error
    for error in (
        EngineError,
        NotAlive,
        NotExplainable,
        NotReady,
        QueueFull,
        StoreError,
        SwapConflict,
        SwapInterrupted,
        SwapRefused,
        TooManyUploads,
        UnknownModel,
    )
}


class Connection(asyncio.Protocol):
    """Sends and receives frames. Those of one iteration of the event loop are sent together.

    Attributes:
        full: whether the other process reads more slowly than this one sends.
    """

    def __init__(self) -> None:
        self.full = False
        self._transport: asyncio.Transport | None = None
        self._unsent: list[bytes | memoryview] = []
        self._unread = bytearray()

    def on_frame(self, kind: Kind, payload: memoryview) -> None:
        """Handle a frame."""
        raise NotImplementedError

    def send(self, kind: Kind, *parts: bytes | memoryview) -> None:
        """Send a frame. It is lost if the connection is closed."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += (_HEAD.pack(kind, sum(len(part) for part in parts)), *parts)

    def close(self) -> None:
        """Close the connection after everything has been sent."""
        if self._transport:
            self._flush()
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_MAX_UNSENT)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._unsent = []

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False

    def data_received(self, data: bytes) -> None:
        whole: bytes | bytearray = data
        if self._unread:
            self._unread += data
            # Large frames arrive in many parts: wait until the first one is complete.
            if len(self._unread) < _HEAD.size or len(self._unread) < _HEAD.size + _HEAD.unpack_from(self._unread)[1]:
                return
            whole, self._unread = self._unread, bytearray()
        view = memoryview(whole)
        start = 0
        while len(view) - start >= _HEAD.size:
            kind, size = _HEAD.unpack_from(view, start)
            end = start + _HEAD.size + size
            if end > len(view):
                break
            self.on_frame(_KINDS[kind], view[start + _HEAD.size : end])
            start = end
        if start < len(view):
            self._unread = bytearray(view[start:])

    def _flush(self) -> None:
        parts, self._unsent = self._unsent, []
        if self._transport and parts:
            self._transport.write(b"".join(parts))


class Admit(NamedTuple):
    """A request that begins: see `EngineClient.admit`."""

    lease: int
    images: int
    deadline: float
    model: str
    version: str

    def encode(self) -> bytes:
        """The payload."""
        name, version = self.model.encode(), self.version.encode()
        return _ADMIT.pack(self.lease, self.images, self.deadline, len(name), len(version)) + name + version

    @classmethod
    def decode(cls, payload: memoryview) -> "Admit":
        """The request of a payload."""
        lease, images, deadline, name, _ = _ADMIT.unpack_from(payload)
        texts = bytes(payload[_ADMIT.size :])
        return cls(lease, images, deadline, texts[:name].decode(), texts[name:].decode())


class Classify(NamedTuple):
    """Images of a request: see `Lease.classify`."""

    lease: int
    call: int
    images: Sequence[NDArray[np.uint8]]
    sources: Sequence[Source]
    maps: bool

    def encode(self) -> list[bytes | memoryview]:
        """The payload, in parts."""
        sources = b""
        files: list[bytes | memoryview] = []
        if self.sources:
            lengths = [None if source.file is None else len(source.file) for source in self.sources]
            fields = [(*source[:2], length) for source, length in zip(self.sources, lengths, strict=True)]
            sources = json.dumps(fields).encode()
            files = [source.file for source in self.sources if source.file is not None]
        head = _CLASSIFY.pack(self.lease, self.call, len(self.images), self.maps, len(sources))
        shapes = b"".join([_SHAPE.pack(*image.shape[:2], image.shape[3]) for image in self.images])
        return [head, sources, *files, shapes, *(image.tobytes() for image in self.images)]

    @classmethod
    def decode(cls, payload: memoryview) -> "Classify":
        """The images of a payload, whose memory they share."""
        lease, call, count, maps, length = _CLASSIFY.unpack_from(payload)
        start = _CLASSIFY.size + length
        sources = []
        if length:
            for request_id, position, size in json.loads(bytes(payload[_CLASSIFY.size : start])):
                file = None if size is None else bytes(payload[start : start + size])
                start += size or 0
                sources.append(Source(request_id, position, file))
        shapes = [_SHAPE.unpack_from(payload, start + i * _SHAPE.size) for i in range(count)]
        start += count * _SHAPE.size
        images = []
        for views, side, channels in shapes:
            size = views * side * side * channels
            pixels = np.frombuffer(payload, np.uint8, size, start)
            images.append(pixels.reshape(views, side, side, channels))
            start += size
        return cls(lease, call, images, sources, maps)


class Results(NamedTuple):
    """The results of a call, and the load of its model."""

    call: int
    load: Load
    batched: Sequence[Batched]

    def encode(self, *, maps: bool) -> list[bytes | memoryview]:
        """The payload, in parts."""
        parts: list[bytes | memoryview] = [_RESULT.pack(self.call, *self.load)]
        for prediction, queued, inference in self.batched:
            cells = prediction.maps if maps else None
            size = (0, 0) if cells is None else cells.shape[2:]
            parts.append(
                _PREDICTION.pack(
                    queued, inference, prediction.score, prediction.in_distribution, prediction.views, *size
                )
            )
            parts += [prediction.probabilities.tobytes(), prediction.logits.tobytes()]
            if cells is not None:
                parts.append(cells.tobytes())
        return parts

    @classmethod
    def number(cls, payload: memoryview) -> int:
        """The number of the call of a payload."""
        number: int = _NUMBER.unpack_from(payload)[0]
        return number

    @classmethod
    def decode(cls, payload: memoryview, card: ModelCard) -> "Results":
        """The results of a payload, from a model with this card."""
        call, *load = _RESULT.unpack_from(payload)
        data = bytes(payload)
        labels = tuple(card.labels)
        start, batched = _RESULT.size, []

        def floats(*shape: int) -> NDArray[np.float32]:
            nonlocal start
            array = np.frombuffer(data, "<f4", int(np.prod(shape)), start).reshape(shape)
            start += array.nbytes
            return array

        while start < len(data):
            queued, inference, score, in_distribution, views, height, width = _PREDICTION.unpack_from(data, start)
            start += _PREDICTION.size
            prediction = Prediction(
                labels=labels,
                probabilities=floats(len(labels)),
                score=score,
                in_distribution=in_distribution,
                thresholds=card.out_of_distribution.thresholds,
                logits=floats(views, len(labels)),
                maps=floats(views, len(labels), height, width) if height else None,
            )
            batched.append(Batched(prediction, queued, inference))
        return cls(call, Load(*load), batched)


def encode_grad_cam(lease: int, call: int, index: int, pixels: NDArray[np.uint8]) -> list[bytes | memoryview]:
    """The payload of GRAD_CAM, in parts."""
    head = _GRAD_CAM.pack(lease, call, index) + _SHAPE.pack(*pixels.shape[:2], pixels.shape[3])
    return [head, pixels.tobytes()]


def decode_grad_cam(payload: memoryview) -> tuple[int, int, int, NDArray[np.uint8]]:
    """The lease, the call, the index and the pixels, uint8[V, S, S, 3]."""
    lease, call, index = _GRAD_CAM.unpack_from(payload)
    views, side, channels = _SHAPE.unpack_from(payload, _GRAD_CAM.size)
    pixels = np.frombuffer(payload, np.uint8, offset=_GRAD_CAM.size + _SHAPE.size)
    return lease, call, index, pixels.reshape(views, side, side, channels)


def encode_number(number: int) -> bytes:
    """The payload of CLOSE and SEEN, and the start of others."""
    return _NUMBER.pack(number)


def decode_number(payload: memoryview) -> int:
    """The number at the start of a payload."""
    number: int = _NUMBER.unpack_from(payload)[0]
    return number


def encode_maps(call: int, maps: NDArray[np.float32]) -> bytes:
    """The payload of MAPS."""
    return _NUMBER.pack(call) + _SHAPE.pack(*maps.shape) + np.ascontiguousarray(maps, "<f4").tobytes()


def decode_maps(payload: memoryview) -> NDArray[np.float32]:
    """The maps of a payload, float32[V, h, w]."""
    shape = _SHAPE.unpack_from(payload, _NUMBER.size)
    return np.frombuffer(bytes(payload), "<f4", offset=_NUMBER.size + _SHAPE.size).reshape(shape)


def encode_error(call: int, error: Exception) -> bytes:
    """The payload of FAILED."""
    known = type(error).__name__ in _ERRORS
    fields = {
        "name": type(error).__name__ if known else RemoteError.__name__,
        "message": str(error) if known else f"{type(error).__name__} in the engine process",
        "retry_after": getattr(error, "retry_after", None),
    }
    return _NUMBER.pack(call) + json.dumps(fields).encode()


def decode_error(payload: memoryview) -> Exception:
    """The error of a payload."""
    fields = json.loads(bytes(payload[_NUMBER.size :]))
    kind = _ERRORS.get(fields["name"], RemoteError)
    if kind is QueueFull:
        return QueueFull(fields["message"], fields["retry_after"])
    return kind(fields["message"])


def is_known(error: Exception) -> bool:
    """Whether an error is the same in both processes."""
    return type(error).__name__ in _ERRORS


def encode_json(number: int, value: Any) -> bytes:
    """The payload of CALL and RETURNED."""
    return _NUMBER.pack(number) + json.dumps(value).encode()


def decode_json(payload: memoryview) -> Any:
    """The value of a payload."""
    return json.loads(bytes(payload[_NUMBER.size :]))


_infos = TypeAdapter(dict[str, tuple[ModelInfo | None, str]])


def encode_catalog(number: int, catalog: Catalog) -> bytes:
    """The payload of CATALOG."""
    loaded = {info.name: info for info in catalog}
    fields = {name: (loaded.get(name), catalog.failure(name)) for name in catalog.names}
    return _NUMBER.pack(number) + _infos.dump_json(fields)


def update(catalog: Catalog, payload: memoryview) -> None:
    """Make a catalog that of a payload."""
    catalog.clear()
    for name, (info, failure) in _infos.validate_json(bytes(payload[_NUMBER.size :])).items():
        if info:
            catalog.put(info)
        if failure:
            catalog.fail(name, failure)
