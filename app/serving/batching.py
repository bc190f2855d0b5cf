"""A bounded queue -> micro-batches -> the engine's own thread -> predictions."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.serving.admission import Admission
from app.serving.errors import NotAlive
from app.telemetry.metrics import Telemetry
from model import FIRST_VIEWS, Prediction

_T = TypeVar("_T")

# After so many failures in succession the engine is at fault, not the images.
_MAX_FAILURES = 3


class Batched(NamedTuple):
    """The prediction for one image, the seconds that it waited in the queue, and the seconds of its batch."""

    prediction: Prediction
    queued: float
    inference: float


@dataclass(slots=True)
class _Item:
    pixels: NDArray[np.uint8]
    future: asyncio.Future[Batched]
    admitted: float
    queued: float
    deadline: float


def _released(_: Sequence[NDArray[np.uint8]]) -> Sequence[Prediction]:
    """Takes the place of the classifier of a batcher that was stopped."""
    raise RuntimeError("the batcher was stopped")


class Batcher:
    """Runs images of many requests through one classifier together.

    One asyncio task owns the queue and one thread owns the engine. A batch starts as soon as the engine is free, with
    what is in the queue then. There is no timer.

    Args:
        model: name of the model.
        classify: N images, each uint8[V, S, S, 3], to N predictions. Called in `engine_thread` only.
        engine_thread: an executor with one thread, which `stop` releases.
        max_batch: largest number of first views in a batch. An image with more is a batch of its own.
        stall_timeout: seconds that one call may take before `check` reports the engine as not alive.
        admission: of the model. It counts completed images.
        telemetry: records batch sizes.

    Attributes:
        observer: called in the event loop with each image and its prediction, after the results of its batch were set.
    """

    observer: Callable[[NDArray[np.uint8], Prediction], None] | None = None

    def __init__(
        self,
        model: str,
        classify: Callable[[Sequence[NDArray[np.uint8]]], Sequence[Prediction]],
        engine_thread: ThreadPoolExecutor,
        *,
        max_batch: int,
        stall_timeout: float,
        admission: Admission,
        telemetry: Telemetry,
    ) -> None:
        self._model = model
        self._classify = classify
        self._engine_thread = engine_thread
        self._max_batch = max_batch
        self._stall_timeout = stall_timeout
        self._admission = admission
        self._telemetry = telemetry
        self._queue: deque[_Item] = deque()
        self._not_empty = asyncio.Event()
        self._batch_began: float | None = None
        self._failures = 0
        self._task = asyncio.create_task(self._run(), name="batcher")

    async def classify(
        self, pixels: NDArray[np.uint8], *, admitted: float | None = None, deadline: float = math.inf
    ) -> Batched:
        """Queue one image and wait for its prediction.

        An image whose request was cancelled, or whose deadline has passed when its turn comes, is not run. In the
        second case the timeout of the request ends the wait.

        Args:
            pixels: uint8[V, S, S, 3].
            admitted: when the image was admitted, as time.monotonic(); now if not given.
            deadline: of its request, as time.monotonic().

        Raises:
            Exception: whatever the classifier raised for the batch.
        """
        now = time.monotonic()
        future: asyncio.Future[Batched] = asyncio.get_running_loop().create_future()
        self._queue.append(_Item(pixels, future, now if admitted is None else admitted, now, deadline))
        self._not_empty.set()
        return await future

    async def in_engine_thread(self, function: Callable[[], _T]) -> _T:
        """Call a function between two batches, in the thread that owns the engine."""
        return await asyncio.get_running_loop().run_in_executor(self._engine_thread, function)

    def check(self) -> None:
        """Check that the task and the engine's thread work.

        Raises:
            NotAlive: one of them does not.
        """
        if self._task.done():
            raise NotAlive("the batching task has ended: restart the service")
        if self._failures >= _MAX_FAILURES:
            raise NotAlive(f"{self._failures} batches in succession have failed: restart the service")
        if self._batch_began is not None and time.monotonic() - self._batch_began > self._stall_timeout:
            raise NotAlive(f"a batch has run for more than {self._stall_timeout:g} s: restart the service")

    async def stop(self) -> None:
        """End the task and release the thread. Images that are still queued get no result: drain before."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._engine_thread.shutdown(wait=False, cancel_futures=True)
        # The error of the cancelled task refers to its frame, and that to this object. In this cycle, the network would
        # stay in memory until the next garbage collection.
        self._classify = _released

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._not_empty.wait()
            batch = self._next_batch()
            if not batch:
                continue
            began = self._batch_began = time.monotonic()
            try:
                images = [item.pixels for item in batch]
                predictions = await loop.run_in_executor(self._engine_thread, self._classify, images)
                ended = time.monotonic()
                results = [
                    Batched(prediction, began - item.queued, ended - began)
                    for item, prediction in zip(batch, predictions, strict=True)
                ]
            except Exception as error:
                self._failures += 1
                for item in batch:
                    if not item.future.done():
                        item.future.set_exception(error)
            else:
                self._failures = 0
                self._telemetry.batch(self._model, sum(result.prediction.views for result in results))
                for item, result in zip(batch, results, strict=True):
                    if not item.future.done():
                        item.future.set_result(result)
                if self.observer:
                    for item, result in zip(batch, results, strict=True):
                        self.observer(item.pixels, result.prediction)
            finally:
                self._batch_began = None
                self._admission.completed(len(batch), since=min(item.admitted for item in batch))

    def _next_batch(self) -> list[_Item]:
        """Take items from the queue, oldest first, up to the largest batch; skip cancelled and late ones."""
        now = time.monotonic()
        batch: list[_Item] = []
        views = 0
        while self._queue:
            item = self._queue[0]
            if item.future.done() or item.deadline <= now:
                self._queue.popleft()
                continue
            views += min(len(item.pixels), FIRST_VIEWS)
            if batch and views > self._max_batch:
                break
            batch.append(self._queue.popleft())
        if not self._queue:
            self._not_empty.clear()
        return batch
