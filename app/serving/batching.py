"""Bounded admission -> micro-batches -> the engine's own thread -> results."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.serving.errors import NotAlive, QueueFull
from app.telemetry.metrics import Telemetry
from model import Prediction

# The rate of answers is the median over so many batches, run in so many seconds; three at least, for one that was held
# up, as when the whole process was, says nothing.
_RATE_BATCHES, _RATE_WINDOW, _RATE_LEAST = 32, 10.0, 3
# By so much longer than reckoned what is under way may take: the more are refused, the slower are the others.
_CAUTION = 1.25
# Forward passes failing one after the other: the engine, not the pictures, is at fault.
_MOST_FAILURES = 3


class Batched(NamedTuple):
    """One picture's prediction, and the seconds that it waited and that its batch took."""

    prediction: Prediction
    queued: float
    inference: float


@dataclass(slots=True)
class _Waiting:
    pixels: NDArray[np.uint8]
    future: asyncio.Future[Batched]
    since: float
    deadline: float


class Batcher:
    """Runs pictures of many requests through the classifier together.

    One asyncio task owns the queue and one thread the engine. A batch starts as soon as the engine is free, with what
    has queued meanwhile, so nobody waits for a timer.

    Args:
        classify: N pictures, each uint8[V, H, W, 3], to N predictions; called in `engine_thread` only.
        engine_thread: an executor of one thread.
        max_batch: most views in one call of `classify`; a picture with more has a call to itself.
        queue_size: most pictures admitted at a time.
        stall_timeout: seconds that one call may take before `check` gives up on it.
        telemetry: is told of batches.
    """

    def __init__(
        self,
        classify: Callable[[Sequence[NDArray[np.uint8]]], Sequence[Prediction]],
        engine_thread: ThreadPoolExecutor,
        *,
        max_batch: int,
        queue_size: int,
        stall_timeout: float,
        telemetry: Telemetry,
    ) -> None:
        self._telemetry = telemetry
        self._classify = classify
        self._engine_thread = engine_thread
        self._max_batch = max_batch
        self._queue_size = queue_size
        self._stall_timeout = stall_timeout
        self._queue: deque[_Waiting] = deque()
        self._queued = asyncio.Event()
        self._admitted = 0
        self._batch_began: float | None = None
        self._failures = 0
        # When a batch ended, and how many pictures a second it ran: since the engine was free or, if nobody waited
        # then, since the first of them came.
        self._rates: deque[tuple[float, float]] = deque(maxlen=_RATE_BATCHES)
        self._rate_known = 0.0
        self._task = asyncio.create_task(self._run(), name="batcher")

    @property
    def admitted(self) -> int:
        """Images under way: being decoded, queued or in a batch."""
        return self._admitted

    @contextmanager
    def admit(self, count: int, *, deadline: float = math.inf) -> Iterator[None]:
        """Hold room for `count` pictures, from before they are decoded until they are answered.

        Raises:
            QueueFull: as `check_room`.
        """
        self.check_room(count, deadline=deadline)
        self._admitted += count
        try:
            yield
        finally:
            self._admitted -= count

    def check_room(self, count: int, *, deadline: float = math.inf) -> None:
        """Whether `count` pictures more could be admitted, and be answered before the deadline (time.monotonic).

        Raises:
            QueueFull: they could not; it knows when to come back, from the measured rate of answers.
        """
        if self._admitted + count > self._queue_size:
            raise QueueFull(
                f"{self._admitted} pictures are under way and {self._queue_size} may be: "
                "send them again after the seconds in Retry-After",
                self._admitted / (self._rate() or 1.0),
            )
        # Where others wait: alone, a picture is tried whatever the rate.
        if self._admitted and (rate := self._rate()):
            seconds = _CAUTION * (self._admitted + count) / rate
            late = time.monotonic() + seconds - deadline
            if late > 0:
                raise QueueFull(
                    f"{self._admitted} pictures are under way, which takes {seconds:.1f} s, more than "
                    "this request has left: send it again after the seconds in Retry-After",
                    late,
                )

    async def classify(self, pixels: NDArray[np.uint8], *, deadline: float = math.inf) -> Batched:
        """Queue one picture, uint8[V, H, W, 3].

        Neither a caller that is cancelled while it waits nor one whose deadline (time.monotonic) has passed costs any
        inference; the latter's own timeout is to end the wait.

        Raises:
            Exception: whatever the classifier raised for the batch.
        """
        waiting = _Waiting(pixels, asyncio.get_running_loop().create_future(), time.monotonic(), deadline)
        self._queue.append(waiting)
        self._queued.set()
        return await waiting.future

    def check(self) -> None:
        """Whether the task and the engine's thread work.

        Raises:
            NotAlive: one does not.
        """
        if self._task.done():
            raise NotAlive("the batching task has ended: restart the service")
        if self._failures >= _MOST_FAILURES:
            raise NotAlive(f"{self._failures} forward passes running have failed: restart the service")
        if self._batch_began is not None and time.monotonic() - self._batch_began > self._stall_timeout:
            raise NotAlive(f"a forward pass has run for more than {self._stall_timeout:g} s: restart the service")

    async def stop(self) -> None:
        """End the task. Images still queued are answered by nobody, so the server drains first."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        free = 0.0
        while True:
            await self._queued.wait()
            batch = self._next_batch()
            if not batch:
                continue
            began = self._batch_began = time.monotonic()
            self._telemetry.batch(sum(len(waiting.pixels) for waiting in batch))
            try:
                pictures = [waiting.pixels for waiting in batch]
                predictions = await loop.run_in_executor(self._engine_thread, self._classify, pictures)
                answers = [
                    Batched(prediction, began - waiting.since, time.monotonic() - began)
                    for waiting, prediction in zip(batch, predictions, strict=True)
                ]
            except Exception as error:
                self._failures += 1
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
            else:
                self._failures = 0
                for waiting, answer in zip(batch, answers, strict=True):
                    if not waiting.future.done():
                        waiting.future.set_result(answer)
            finally:
                self._batch_began = None
                ended = time.monotonic()
                self._remember(ended, len(batch) / max(ended - max(free, batch[0].since), 1e-6))
                free = ended

    def _next_batch(self) -> list[_Waiting]:
        """What has queued, oldest first, up to the largest batch; without those who have left or waited too long."""
        now = time.monotonic()
        batch: list[_Waiting] = []
        views = 0
        while self._queue:
            if self._queue[0].future.done() or self._queue[0].deadline <= now:
                self._queue.popleft()
                continue
            views += len(self._queue[0].pixels)
            if batch and views > self._max_batch:
                break
            batch.append(self._queue.popleft())
        if not self._queue:
            self._queued.clear()
        return batch

    def _remember(self, ended: float, rate: float) -> None:
        while self._rates and self._rates[0][0] < ended - _RATE_WINDOW:
            self._rates.popleft()
        self._rates.append((ended, rate))
        known = len(self._rates) >= _RATE_LEAST
        self._rate_known = max(median(rate for _, rate in self._rates), 1.0) if known else 0.0

    def _rate(self) -> float:
        """Images a second, lately, while there were any, one at least; 0 while nothing is known."""
        recent = self._rates and time.monotonic() - self._rates[-1][0] < _RATE_WINDOW
        return self._rate_known if recent else 0.0
