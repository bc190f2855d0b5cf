"""A thread that writes predictions and labels to the store, so that the event loop never waits for the disk."""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from app.feedback.store import Limits, Store, Stored
from app.telemetry.metrics import Telemetry

logger = logging.getLogger("tenfold")

T = TypeVar("T")

# Predictions and bytes of images that wait for the thread. More are lost, which is counted.
_MAX_WAITING = 2_000
_MAX_BYTES = 50_000_000
# Predictions of a transaction.
_BATCH = 500
# Seconds between two removals of old predictions, and between two lines of the log about the same error.
_PRUNE_INTERVAL = 10.0
_LOG_INTERVAL = 60.0
# Seconds to write what waits, when the service stops.
_STOP_TIMEOUT = 5.0


class _Job(NamedTuple):
    """A call in the thread with a result."""

    run: Callable[[Store], object]
    done: Callable[[object], None]
    failed: Callable[[Exception], None]


class Recorder:
    """Records predictions, and runs queries on the store.

    A store that fails does not affect the service: predictions are lost and counted, and the store is opened again for
    the next ones.

    Args:
        path: of the store.
        limits: of the store.
        telemetry: counts what is lost.
    """

    def __init__(self, path: Path, limits: Limits, telemetry: Telemetry) -> None:
        self._path = path
        self._limits = limits
        self._telemetry = telemetry
        self._queue = queue.SimpleQueue[Stored | _Job | None]()
        self._queued_bytes = 0  # written by the event loop only
        self._taken_bytes = 0  # written by the thread only
        self._logged = ("", 0.0)
        self._thread = threading.Thread(target=self._work, name="feedback", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Write what waits, and end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join, _STOP_TIMEOUT)

    def record(self, prediction: Stored) -> None:
        """Store a prediction soon. It never blocks. If too much waits, the prediction is lost."""
        size = len(prediction.image or b"")
        if self._queue.qsize() >= _MAX_WAITING or self._queued_bytes - self._taken_bytes + size > _MAX_BYTES:
            self._telemetry.feedback_lost("busy", 1)
            return
        self._queued_bytes += size
        self._queue.put(prediction)

    async def find(self, request_id: str, position: int) -> Stored | None:
        """See `Store.find`."""
        return await self._run(lambda store: store.find(request_id, position))

    async def set_label(self, request_id: str, position: int, label: str | None) -> bool:
        """See `Store.set_label`."""
        return await self._run(lambda store: store.set_label(request_id, position, label))

    async def _run(self, call: Callable[[Store], T]) -> T:
        """Call in the thread, after the predictions that were recorded before.

        Raises:
            StoreError: the store failed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(action: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(lambda: None if future.done() else action())

        self._queue.put(
            _Job(
                call,
                lambda result: finish(lambda: future.set_result(result)),  # type: ignore[arg-type]
                lambda error: finish(lambda: future.set_exception(error)),
            )
        )
        return await future

    def _work(self) -> None:
        store: Store | None = None
        prune_at = 0.0
        running = True
        while running:
            batch, job, running = self._take()
            try:
                if store and not store.exists():
                    store.close()
                    store = None
                if store is None:
                    store = Store(self._path)
                if batch:
                    store.add(batch)
                    batch = []
                if time.monotonic() >= prune_at or store.size() > self._limits.size:
                    store.prune(self._limits)
                    prune_at = time.monotonic() + _PRUNE_INTERVAL
                if job:
                    job.done(job.run(store))
            except Exception as error:  # of any kind, for the thread must not end
                self._log(str(error))
                if batch:
                    self._telemetry.feedback_lost("error", len(batch))
                if job:
                    job.failed(error)
                if store:
                    store.close()
                    store = None
        if store:
            store.close()

    def _take(self) -> tuple[list[Stored], _Job | None, bool]:
        """The predictions that wait, up to a job or the end, and whether to continue."""
        batch: list[Stored] = []
        try:
            item = self._queue.get(timeout=_PRUNE_INTERVAL)
            while isinstance(item, Stored):
                batch.append(item)
                self._taken_bytes += len(item.image or b"")
                if len(batch) == _BATCH:
                    return batch, None, True
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, None, True
        return batch, item, item is not None

    def _log(self, message: str) -> None:
        last, at = self._logged
        if message != last or time.monotonic() - at > _LOG_INTERVAL:
            logger.error("%s: predictions are not stored for feedback", message)
            self._logged = (message, time.monotonic())
