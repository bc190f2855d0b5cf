"""The engine process, as seen by the fronts: an `EngineCore` behind a Unix socket."""

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic_core import to_jsonable_python

from app.engine import wire
from app.engine.api import Batched, Source
from app.engine.core import CoreLease, EngineCore
from app.engine.errors import NotReady, ServingError
from app.engine.models import LoadedModel
from app.engine.status import ShadowPlan, Status
from app.engine.wire import Kind
from app.feedback.store import Stored

logger = logging.getLogger("tenfold")

# Seconds to wait for the fronts to use new weights. One that is stopped is replaced later.
_SEEN_TIMEOUT, _SEEN_INTERVAL = 2.0, 0.002


class Host:
    """Accepts the connections of the fronts.

    Args:
        core: that they share.
    """

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._fronts: set[_Front] = set()
        self._server: asyncio.Server | None = None
        core.models.on_change = self._publish

    @property
    def fronts(self) -> int:
        """How many fronts are connected."""
        return len(self._fronts)

    async def start(self, listening: socket.socket) -> None:
        """Accept connections, and begin to load the models."""
        self._server = await asyncio.get_running_loop().create_server(partial(_Front, self), sock=listening)
        await self.core.start()

    async def stop(self) -> None:
        """Close the connections, and release the models."""
        if self._server:
            self._server.close()
        for front in list(self._fronts):
            front.close()
        while self._fronts:
            await asyncio.sleep(0)
        await self.core.stop()

    def joined(self, front: "_Front") -> None:
        """Note a front that has connected."""
        self._fronts.add(front)
        front.publish()

    def left(self, front: "_Front") -> None:
        """Note a front that has ended."""
        self._fronts.discard(front)

    async def wait_seen(self) -> None:
        """Wait until all fronts use the present catalog, so that no later request gets replaced weights."""
        ends = time.monotonic() + _SEEN_TIMEOUT
        while any(front.is_behind for front in self._fronts) and time.monotonic() < ends:
            await asyncio.sleep(_SEEN_INTERVAL)

    def _publish(self) -> None:
        for front in self._fronts:
            front.publish()


class _Front(wire.Connection):
    """The connection of one front."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self._core = host.core
        self._leases: dict[int, CoreLease] = {}
        self._refused: dict[int, Exception] = {}
        self._futures: dict[int, set[asyncio.Future[Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sequence = 0
        # Models of the catalogs that the front may still use, by the number of the catalog.
        self._published: dict[int, list[LoadedModel]] = {}

    @property
    def is_behind(self) -> bool:
        """Whether the front has not seen the present catalog yet."""
        return len(self._published) > 1

    def publish(self) -> None:
        """Send the catalog. Its models stay loaded until the front has seen a later one."""
        self._sequence += 1
        models = self._published[self._sequence] = self._core.models.serving()
        for model in models:
            model.use()
        self.send(Kind.CATALOG, wire.encode_catalog(self._sequence, self._core.catalog))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._host.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._host.left(self)
        for number in list(self._leases):
            self._close(number)
        for task in self._tasks:
            task.cancel()
        self._release_before(self._sequence + 1)

    def on_frame(self, kind: Kind, payload: memoryview) -> None:
        if kind == Kind.ADMIT:
            self._admit(wire.Admit.decode(payload))
        elif kind == Kind.CLASSIFY:
            self._classify(wire.Classify.decode(payload))
        elif kind == Kind.CLOSE:
            self._close(wire.decode_number(payload))
        elif kind == Kind.SEEN:
            self._release_before(wire.decode_number(payload))
        elif kind == Kind.GRAD_CAM:
            lease, call, index, pixels = wire.decode_grad_cam(payload)
            if found := self._lease(lease, call):
                self._run(lease, call, self._grad_cam(call, found, pixels, index))
        elif kind == Kind.CALL:
            call = wire.decode_number(payload)
            self._run(None, call, self._return(call, *wire.decode_json(payload)))

    def _admit(self, request: wire.Admit) -> None:
        try:
            self._core.catalog.get(request.model)
            model = self._core.models.version(request.model, request.version)
            if model is None:
                raise NotReady("the weights were replaced meanwhile: send the request again")
            self._leases[request.lease] = CoreLease(self._core, model, request.images, request.deadline)
            self._futures[request.lease] = set()
        except ServingError as error:
            self._refused[request.lease] = error

    def _lease(self, number: int, call: int) -> CoreLease | None:
        """The lease with this number. If it was refused, the call fails."""
        if error := self._refused.get(number):
            self._fail(call, error)
        return self._leases.get(number)

    def _classify(self, request: wire.Classify) -> None:
        if lease := self._lease(request.lease, request.call):
            future = lease.submit(request.images)
            self._futures[request.lease].add(future)
            future.add_done_callback(partial(self._classified, lease, request.call, request.sources, request.maps))

    def _classified(
        self, lease: CoreLease, call: int, sources: Sequence[Source], maps: bool, future: asyncio.Future[list[Batched]]
    ) -> None:
        if future.cancelled():
            return
        if error := future.exception():
            self._fail(call, error)
            return
        results = future.result()
        lease.record(results, sources)  # before the response, so that feedback finds the prediction
        self.send(Kind.RESULT, *wire.Results(call, lease.load, results).encode(maps=maps))

    def _close(self, number: int) -> None:
        self._refused.pop(number, None)
        if lease := self._leases.pop(number, None):
            for future in self._futures.pop(number):
                future.cancel()
            lease.close()

    async def _grad_cam(self, call: int, lease: CoreLease, pixels: Any, index: int) -> None:
        self.send(Kind.MAPS, wire.encode_maps(call, await lease.grad_cam(pixels, index)))

    async def _return(self, call: int, method: str, arguments: list[Any]) -> None:
        self.send(Kind.RETURNED, wire.encode_json(call, await self._call(method, arguments)))

    async def _call(self, method: str, arguments: list[Any]) -> Any:
        calls: Mapping[str, Callable[..., Awaitable[Any]]] = {
            "swap": self._swap,
            "roll_back": self._roll_back,
            "confirm": self._core.confirm,
            "end_swap": self._core.end_swap,
            "swap_status": self._core.swap_status,
            "drift": self._core.drift,
            "sample": self._core.sample,
            "find_prediction": self._find_prediction,
            "set_label": self._core.set_label,
        }
        return to_jsonable_python(await calls[method](*arguments))

    async def _swap(self, model: str, weights: str | None, plan: dict[str, Any] | None) -> Status:
        status = await self._core.swap(model, weights, ShadowPlan(**plan) if plan else None)
        await self._host.wait_seen()
        return status

    async def _roll_back(self, model: str) -> Status:
        status = await self._core.roll_back(model)
        await self._host.wait_seen()
        return status

    async def _find_prediction(self, request_id: str, position: int) -> Stored | None:
        found = await self._core.find_prediction(request_id, position)
        return found and found._replace(image=None)

    def _run(self, lease: int | None, call: int, work: Any) -> None:
        """Carry out a call in a task, which ends with its lease or its connection."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                self._fail(call, error)

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if lease is not None:
            self._futures[lease].add(task)

    def _fail(self, call: int, error: BaseException) -> None:
        assert isinstance(error, Exception)  # noqa: S101
        if not wire.is_known(error):
            logger.error("a call of the engine failed", exc_info=error)
        self.send(Kind.FAILED, wire.encode_error(call, error))

    def _release_before(self, sequence: int) -> None:
        for number in [each for each in self._published if each < sequence]:
            for model in self._published.pop(number):
                model.leave()
