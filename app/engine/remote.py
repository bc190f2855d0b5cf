"""The engine in another process: `EngineClient` over a Unix socket."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from app.engine import wire
from app.engine.admission import Load
from app.engine.api import Batched, Catalog, ModelInfo, Source
from app.engine.drift import Drift
from app.engine.errors import NotReady, QueueFull
from app.engine.status import ShadowPlan, Status
from app.engine.wire import Kind
from app.feedback.store import Stored

# Seconds between two attempts to connect, and the longest wait for the first connection.
_RETRY = 0.05
_FIRST_CONNECTION = 1.0
# Seconds for the result of a call that needs no computation.
_QUICK = 2.0
# Seconds after which a reported load says nothing. The engine's own refusal is final.
_LOAD_LIFE = 0.25
_UNAVAILABLE = "the process of the engine has ended and is started again: send the request again in a second"

_drifts = TypeAdapter(dict[str, Drift])


@dataclass(slots=True)
class _Call:
    """A call whose result is due. `model` is the one that classifies."""

    future: asyncio.Future[Any]
    model: ModelInfo | None


@dataclass(slots=True)
class _Known:
    """The load of a model as it was last reported, and the images of this front then."""

    load: Load
    at: float
    own: int


class RemoteLease:
    """See `Lease`."""

    def __init__(self, connection: "_Connection", number: int, model: ModelInfo) -> None:
        self.model = model
        self._connection = connection
        self._number = number

    async def classify(
        self, images: Sequence[NDArray[np.uint8]], sources: Sequence[Source] = (), *, maps: bool = False
    ) -> list[Batched]:
        """See `Lease.classify`."""
        results: list[Batched] = await self._connection.call(
            Kind.CLASSIFY,
            lambda call: wire.Classify(self._number, call, images, sources, maps).encode(),
            self.model,
        )
        return results

    async def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        """See `Lease.grad_cam`."""
        maps: NDArray[np.float32] = await self._connection.call(
            Kind.GRAD_CAM, lambda call: wire.encode_grad_cam(self._number, call, index, pixels)
        )
        return maps


class RemoteEngine:
    """Speaks to the process that owns the models, and connects again when it is replaced.

    See `EngineClient` for the methods.

    Args:
        path: of the Unix socket.
        names: of the models, the default model first.
    """

    def __init__(self, path: Path | str, names: Iterable[str]) -> None:
        self.catalog = Catalog(names)
        self._path = str(path)
        self._own = dict.fromkeys(self.catalog.names, 0)
        self._known: dict[str, _Known] = {}
        self._numbers = itertools.count(1)
        self._connection: _Connection | None = None
        self._connected = asyncio.Event()

    async def start(self) -> None:
        """Connect, and wait a moment for the first catalog, so that the first requests find the models."""
        self._connecting = asyncio.create_task(self._stay_connected(), name="connect")
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_CONNECTION):
                await self._connected.wait()

    async def stop(self) -> None:
        """Close the connection."""
        self._connecting.cancel()
        if self._connection:
            self._connection.close()

    def drain(self) -> None:
        """Do nothing. The supervisor lets the engine process drain."""

    def check_alive(self) -> None:
        """See `EngineClient.check_alive`. An engine process that has ended is started again."""
        self.catalog.check_alive()

    def check_ready(self) -> None:
        """See `EngineClient.check_ready`."""
        if self._connection is None:
            raise NotReady(_UNAVAILABLE)
        self.catalog.check_ready()

    def check_images(self, model: str, count: int, *, deadline: float = math.inf) -> None:
        """See `EngineClient.check_images`. It knows the load that the last result reported."""
        if self._connection and self._connection.full:
            raise QueueFull("the engine reads more slowly than images arrive: send them again in a second", 1.0)
        known, now = self._known.get(model), time.monotonic()
        if known and now - known.at < _LOAD_LIFE:
            more = self._own[model] - known.own
            load = known.load._replace(used=known.load.used + more, free=known.load.free - more)
            load.check(model, count, deadline - now)

    @contextmanager
    def admit(self, model: str, count: int, *, deadline: float = math.inf) -> Iterator[RemoteLease]:
        """See `EngineClient.admit`. If the engine refuses the images, the first call of the lease raises the error."""
        info = self.catalog.get(model)
        connection = self._connection
        if connection is None:
            raise NotReady(_UNAVAILABLE)
        self.check_images(model, count, deadline=deadline)
        number = next(self._numbers)
        connection.send(Kind.ADMIT, wire.Admit(number, count, deadline, model, info.card.version).encode())
        self._own[model] += count
        try:
            yield RemoteLease(connection, number, info)
        finally:
            self._own[model] -= count
            connection.send(Kind.CLOSE, wire.encode_number(number))

    async def swap(self, model: str, weights: str | None, shadow: ShadowPlan | None = None) -> Status:
        """See `Swaps.swap`."""
        return Status(**await self._call("swap", model, weights, shadow and shadow.model_dump()))

    async def roll_back(self, model: str) -> Status:
        """See `Swaps.roll_back`."""
        return Status(**await self._call("roll_back", model))

    async def confirm(self, model: str) -> Status:
        """See `Swaps.confirm`."""
        return Status(**await self._call("confirm", model))

    async def end_swap(self, model: str) -> Status:
        """See `Swaps.end`."""
        return Status(**await self._call("end_swap", model))

    async def swap_status(self, model: str) -> Status | None:
        """See `Swaps.status`."""
        found = await self._quick_call("swap_status", model)
        return Status(**found) if found else None

    async def reload(self) -> None:
        """Do nothing. The supervisor lets the engine process reload."""

    async def drift(self) -> Mapping[str, Drift]:
        """See `EngineClient.drift`."""
        return _drifts.validate_python(await self._quick_call("drift"))

    async def sample(self) -> None:
        """See `EngineClient.sample`."""
        await self._quick_call("sample")

    async def find_prediction(self, request_id: str, index: int) -> Stored | None:
        """See `Store.find`. The file of the image is not sent."""
        found = await self._call("find_prediction", request_id, index)
        return Stored(*found) if found else None

    async def set_label(self, request_id: str, index: int, label: str | None) -> bool:
        """See `Store.set_label`."""
        return bool(await self._call("set_label", request_id, index, label))

    def reported(self, model: str, load: Load) -> None:
        """Note the load of a model, which a result reported."""
        self._known[model] = _Known(load, time.monotonic(), self._own[model])

    def published(self, catalog: memoryview) -> None:
        """Note what is served now: the payload of CATALOG."""
        wire.update(self.catalog, catalog)
        self._connected.set()

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._connection is None:
            raise NotReady(_UNAVAILABLE)
        return await self._connection.call(Kind.CALL, lambda call: [wire.encode_json(call, [method, arguments])])

    async def _quick_call(self, method: str, *arguments: Any) -> Any:
        """A call that needs no computation. An engine process that hangs is replaced later."""
        try:
            async with asyncio.timeout(_QUICK):
                return await self._call(method, *arguments)
        except TimeoutError:
            raise NotReady("the process of the engine does not respond: send the request again in a second") from None

    async def _stay_connected(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection = _Connection(self)
            try:
                await loop.create_unix_connection(lambda: connection, self._path)  # noqa: B023
            except OSError:
                await asyncio.sleep(_RETRY)
                continue
            self._connection = connection
            await connection.lost.wait()
            self._connection = None
            self._known.clear()
            self.catalog.clear()
            await asyncio.sleep(_RETRY)


class _Connection(wire.Connection):
    """A connection to the engine process. When it ends, the calls whose results are due fail.

    Attributes:
        lost: set when it has ended.
    """

    def __init__(self, engine: RemoteEngine) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self._engine = engine
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}

    async def call(
        self,
        kind: Kind,
        encode: Callable[[int], list[bytes | memoryview]],
        model: ModelInfo | None = None,
    ) -> Any:
        """Send a frame with the number of a new call, and wait for its result.

        Args:
            kind: of the frame.
            encode: the number to the payload, in parts.
            model: that classifies, for CLASSIFY.

        Raises:
            NotReady: the process of the engine has ended.
            Exception: whatever the call raised there.
        """
        if self.lost.is_set():
            raise NotReady(_UNAVAILABLE)
        number = next(self._numbers)
        call = self._calls[number] = _Call(asyncio.get_running_loop().create_future(), model)
        try:
            self.send(kind, *encode(number))
            return await call.future
        finally:
            self._calls.pop(number, None)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost.set()
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_exception(NotReady(_UNAVAILABLE))

    def on_frame(self, kind: Kind, payload: memoryview) -> None:
        number = wire.decode_number(payload)
        if kind == Kind.CATALOG:
            self._engine.published(payload)
            self.send(Kind.SEEN, wire.encode_number(number))
            return
        call = self._calls.get(number)
        if call is None or call.future.done():  # its request was cancelled
            return
        if kind == Kind.RESULT and call.model:
            results = wire.Results.decode(payload, call.model.card)
            self._engine.reported(call.model.name, results.load)
            call.future.set_result(results.batched)
        elif kind == Kind.MAPS:
            call.future.set_result(wire.decode_maps(payload))
        elif kind == Kind.FAILED:
            call.future.set_exception(wire.decode_error(payload))
        elif kind == Kind.RETURNED:
            call.future.set_result(wire.decode_json(payload))
