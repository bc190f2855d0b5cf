"""A queue -> micro-batches -> one or several lanes, each a thread with an engine -> predictions."""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from app.engine.admission import Admission
from app.engine.api import Batched
from app.engine.errors import NotAlive
from app.telemetry.metrics import Telemetry
from model import FIRST_VIEWS, Classifier, Outputs, Passes, Prediction

T = TypeVar("T")

# After so many failures in succession the engine is at fault, not the images.
_MAX_FAILURES = 3


class _Call:
    """Images that were queued together.

    Attributes:
        admitted: time.monotonic().
        future: done when all images are classified, or one of them cannot be. To cancel it cancels the images.
    """

    def __init__(self, images: int, admitted: float, deadline: float, future: asyncio.Future[list[Batched]]) -> None:
        self.admitted = admitted
        self.future = future
        self._deadline = deadline
        self._results: list[Batched | None] = [None] * images
        self._left = images

    def is_over(self, now: float) -> bool:
        """Whether nobody waits for its images any more."""
        return self.future.done() or self._deadline <= now

    def put(self, index: int, result: Batched) -> None:
        """Set the result of an image."""
        self._results[index] = result
        self._left -= 1
        if not self._left and not self.future.done():
            self.future.set_result([found for found in self._results if found])

    def fail(self, error: Exception) -> None:
        """Set the error of an image, which is that of all."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # mark it as retrieved: perhaps nobody waits any more


@dataclass(slots=True)
class _Item:
    call: _Call
    index: int
    pixels: NDArray[np.uint8]
    queued: float


@dataclass(slots=True)
class _Batch:
    """Images that are classified together.

    Attributes:
        began: time.monotonic().
        passes: what remains to be done; None before the first forward pass.
        views: of the next forward pass.
    """

    items: list[_Item]
    began: float
    passes: Passes | None = None
    views: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))


@dataclass(slots=True, eq=False)
class _Lane:
    """A thread with an engine.

    Attributes:
        wake: ends the wait of the thread for work.
        began: start of its present work; None if there is none.
        working: done when the thread has ended.
    """

    classifier: Classifier
    thread: ThreadPoolExecutor
    wake: SimpleQueue[None] = field(default_factory=SimpleQueue)
    began: float | None = None
    working: Future[None] | None = None


class Batcher:
    """Runs images of many requests through one model together.

    The event loop appends to the queue. Each lane is a thread that owns an engine: as soon as its engine is free, it
    takes what is in the queue, up to the largest batch. There is no timer. On a GPU, another thread turns the outputs
    into predictions, so that the lane waits for nothing.

    Its methods belong to the event loop's thread.

    Args:
        lanes: of each lane the loaded classifier and its thread, which `stop` releases.
        max_batch: largest number of first views in a batch. An image with more is a batch of its own.
        stall_timeout: seconds that one forward pass may take before `check` reports the engine as not alive.
        admission: of the model. It counts completed images.
        telemetry: records batch sizes.

    Attributes:
        observers: called in the event loop with each image and its prediction, after its result was set.
    """

    def __init__(
        self,
        lanes: Sequence[tuple[Classifier, ThreadPoolExecutor]],
        *,
        max_batch: int,
        stall_timeout: float,
        admission: Admission,
        telemetry: Telemetry,
    ) -> None:
        self.observers: list[Callable[[NDArray[np.uint8], Prediction], None]] = []
        self._model = lanes[0][0].card.name
        self._max_batch = max_batch
        self._stall_timeout = stall_timeout
        self._admission = admission
        self._telemetry = telemetry
        self._loop = asyncio.get_running_loop()
        self._taking = threading.Lock()
        self._idle: deque[_Lane] = deque()
        self._waking = False
        self._queue: deque[_Item] = deque()
        self._further: deque[_Batch] = deque()  # batches with another forward pass, before the queue
        self._functions: deque[Callable[[Classifier], None]] = deque()
        self._called = False  # whether the last work was a function
        self._stopped = False
        self._failures = 0
        # On a CPU, both threads would only take turns.
        on_cpu = lanes[0][0].engine.device == "cpu"
        self._finisher = None if on_cpu else ThreadPoolExecutor(1, "results")
        self._lanes = [_Lane(classifier, thread) for classifier, thread in lanes]
        for lane in self._lanes:
            lane.working = lane.thread.submit(self._work, lane)

    def submit(
        self, images: Sequence[NDArray[np.uint8]], *, admitted: float | None = None, deadline: float = math.inf
    ) -> asyncio.Future[list[Batched]]:
        """Queue images.

        An image whose future was cancelled, or whose deadline has passed when its turn comes, is not run. In the second
        case the future stays as it is, because the timeout of the request ends the wait.

        Args:
            images: one or more, each uint8[V, S, S, 3].
            admitted: when they were admitted, as time.monotonic(); now if not given.
            deadline: of their request, as time.monotonic().

        Returns:
            A future of the results, in order, or of whatever the classifier raised for one of them.
        """
        now = time.monotonic()
        call = _Call(len(images), now if admitted is None else admitted, deadline, self._loop.create_future())
        for index, pixels in enumerate(images):
            self._queue.append(_Item(call, index, pixels, now))
        self._wake()
        return call.future

    async def in_engine_thread(self, function: Callable[[Classifier], T]) -> T:
        """Call a function with the classifier between two forward passes, in a thread that owns an engine."""
        future: Future[T] = Future()

        def call(classifier: Classifier) -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(classifier))
                except BaseException as error:
                    future.set_exception(error)

        self._functions.append(call)
        self._wake()
        return await asyncio.wrap_future(future)

    def check(self) -> None:
        """Check that the lanes work.

        Raises:
            NotAlive: one of them does not.
        """
        if any(lane.working and lane.working.done() for lane in self._lanes):
            raise NotAlive("the thread of the engine has ended: restart the service")
        if self._failures >= _MAX_FAILURES:
            raise NotAlive(f"{self._failures} batches in succession have failed: restart the service")
        earliest = min((lane.began for lane in self._lanes if lane.began is not None), default=math.inf)
        if time.monotonic() - earliest > self._stall_timeout:
            raise NotAlive(f"a batch has run for more than {self._stall_timeout:g} s: restart the service")

    def stop(self) -> None:
        """End the lanes and release the engines. Images that are still queued get no result: drain before."""
        self._stopped = True
        for lane in self._lanes:
            lane.wake.put(None)
            lane.thread.shutdown(wait=False)
        self._lanes = []
        if self._finisher:
            self._finisher.shutdown(wait=False)

    # In the event loop

    def _wake(self) -> None:
        """Let a lane that is idle look for work, after the callbacks that are ready now have added theirs."""
        if not self._waking and self._idle:
            self._waking = True
            self._loop.call_soon(self._wake_lanes)

    def _wake_lanes(self) -> None:
        self._waking = False
        for _ in range(min(len(self._idle), len(self._queue) + len(self._functions) + len(self._further))):
            with suppress(IndexError):  # the lane has found the work itself
                self._idle.popleft().wake.put(None)

    # In the thread of a lane

    def _work(self, lane: _Lane) -> None:
        while not self._stopped:
            while work := self._take():
                lane.began = time.monotonic()
                if isinstance(work, _Batch):
                    self._run(lane, work)
                else:
                    work(lane.classifier)
                    lane.began = None
                work = None  # it refers to images
            self._idle.append(lane)
            if self._queue or self._further or self._functions or self._stopped:  # added before the lane was idle
                try:
                    self._idle.remove(lane)
                except ValueError:
                    pass
                else:
                    continue
            lane.wake.get()
        self._idle.clear()  # it refers to the engines

    def _take(self) -> "_Batch | Callable[[Classifier], None] | None":
        """What a lane does next; None if there is nothing to do."""
        with self._taking:
            # Functions come first, but not several in succession while images wait.
            if self._functions and not (self._called and (self._queue or self._further)):
                self._called = True
                return self._functions.popleft()
            self._called = False
            if self._further:
                return self._further.popleft()
            items = self._next_items()
            return _Batch(items, time.monotonic()) if items else None

    def _next_items(self) -> list[_Item]:
        """Take items from the queue, oldest first, up to the largest batch; skip cancelled and late ones."""
        now = time.monotonic()
        items: list[_Item] = []
        views = 0
        while self._queue:
            item = self._queue[0]
            if item.call.is_over(now):
                self._queue.popleft()
                continue
            views += min(len(item.pixels), FIRST_VIEWS)
            if items and views > self._max_batch:
                break
            items.append(self._queue.popleft())
        return items

    def _run(self, lane: _Lane, batch: _Batch) -> None:
        try:
            if batch.passes is None:
                batch.passes = lane.classifier.passes([item.pixels for item in batch.items])
                batch.views = next(batch.passes)
            out = lane.classifier.engine.run(batch.views)
            lane.began = None  # before anybody learns of the end
        except Exception as error:
            lane.began = None
            self._in_loop(self._fail, batch, error)
        else:
            if self._finisher:
                with suppress(RuntimeError):  # the batcher was stopped
                    self._finisher.submit(self._continue, batch, batch.passes, out)
            else:
                self._continue(batch, batch.passes, out)

    # In the thread of the results, or of the lane

    def _continue(self, batch: _Batch, passes: Passes, out: Outputs) -> None:
        try:
            batch.views = passes.send(out)
        except StopIteration as end:
            self._in_loop(self._deliver, batch, end.value, time.monotonic())
        except Exception as error:
            self._in_loop(self._fail, batch, error)
        else:
            self._further.append(batch)
            if self._finisher:
                self._in_loop(self._wake)

    def _in_loop(self, function: Callable[..., None], *arguments: object) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)

    # In the event loop

    def _deliver(self, batch: _Batch, predictions: Sequence[Prediction], ended: float) -> None:
        try:
            pairs = list(zip(batch.items, predictions, strict=True))
        except ValueError as error:
            self._fail(batch, error)
            return
        self._failures = 0
        self._telemetry.batch(self._model, sum(prediction.views for prediction in predictions))
        for item, prediction in pairs:
            item.call.put(item.index, Batched(prediction, batch.began - item.queued, ended - batch.began))
        self._completed(batch)
        for observer in self.observers:
            for item, prediction in pairs:
                observer(item.pixels, prediction)

    def _fail(self, batch: _Batch, error: Exception) -> None:
        self._failures += 1
        for item in batch.items:
            item.call.fail(error)
        self._completed(batch)

    def _completed(self, batch: _Batch) -> None:
        self._admission.completed(len(batch.items), since=min(item.call.admitted for item in batch.items))
