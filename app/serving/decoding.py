"""Where an image is decoded: small ones in the event loop, others in threads that all models and requests share."""

import asyncio
import heapq
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from app.serving.threads import compute_threads
from model import ImageTooLarge, InputSpec, PreprocessedImage, decode_memory, preprocess

T = TypeVar("T")

# Decoded in the event loop: a CIFAR-10 image as PNG takes 0.2 ms, the way to a thread and back 0.25 ms.
_SMALL_FORMATS = (b"\x89PNG", b"\xff\xd8\xff")
_SMALL_BYTES = 16_384
_SMALL_PIXELS = 4_096


@dataclass(slots=True)
class Flow:
    """The jobs of one request, for the fair queue.

    Attributes:
        model: name of the model that the request is for.
        finish: virtual time of the model's jobs at which the last job of the request ends.
    """

    model: str
    finish: float = 0.0


@dataclass(order=True, slots=True)
class _Job:
    finish: float
    number: int
    size: int = field(compare=False)
    function: Callable[[], Any] = field(compare=False)
    future: asyncio.Future[Any] = field(compare=False)


@dataclass(slots=True)
class _ModelJobs:
    """The jobs of one model that wait.

    Attributes:
        waiting: a heap.
        virtual_time: of the jobs of this model: `finish` of the one that started last.
        begin: virtual time of the decoder at which the next job of this model begins.
    """

    waiting: list[_Job] = field(default_factory=list)
    virtual_time: float = 0.0
    begin: float = 0.0


def _nothing() -> None:
    """In the place of the function of a cancelled job."""


class Decoder:
    """Runs decoding jobs in threads, with a limit on the memory of all jobs that run at once.

    Waiting jobs are ordered by self-clocked fair queueing (Golestani 1994, "A self-clocked fair queueing scheme for
    broadband applications"): a job's virtual finish time is its size, in bytes of memory, after the later of the job
    that started last and the previous job of its request. So a small image passes large ones that came before it, a
    request with many images does not hold up the others, and no job waits for ever. The models share the threads in
    the same way, so that many requests for one model do not hold up those for another.

    It belongs to the event loop's thread.

    Args:
        threads: number of threads.
        max_bytes: memory of all jobs that run at once. A larger job runs alone.
        max_pixels: largest image, width x height.
    """

    def __init__(self, *, threads: int, max_bytes: int, max_pixels: int) -> None:
        self._threads = threads
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._executor: ThreadPoolExecutor = compute_threads(threads, "decode")
        self._models: defaultdict[str, _ModelJobs] = defaultdict(_ModelJobs)
        self._number = 0
        self._virtual_time = 0.0
        self._running = 0
        self._running_bytes = 0

    def stop(self) -> None:
        """Release the threads. Jobs that wait are cancelled."""
        for jobs in self._models.values():
            for job in jobs.waiting:
                job.future.cancel()
        self._models.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def preprocess(self, data: bytes, spec: InputSpec, views: int, flow: Flow) -> PreprocessedImage:
        """Decode an image file and apply the test transform. See `model.preprocess`.

        Raises:
            ImageError: the image is at fault.
        """
        if len(data) <= _SMALL_BYTES and data.startswith(_SMALL_FORMATS):
            try:
                return preprocess(data, spec, max_pixels=min(_SMALL_PIXELS, self._max_pixels), views=views)
            except ImageTooLarge:
                pass  # for the event loop, perhaps not for a thread
        size = decode_memory(data, side=spec.resize, max_pixels=self._max_pixels)
        job = partial(preprocess, data, spec, max_pixels=self._max_pixels, views=views)
        return await self.run(job, size=size, flow=flow)

    async def run(self, function: Callable[[], T], *, size: int, flow: Flow) -> T:
        """Run a function in one of the threads when its turn comes.

        Args:
            function: called without arguments.
            size: bytes of memory that it takes at most.
            flow: of its request.

        Raises:
            Exception: whatever the function raised.
        """
        jobs = self._models[flow.model]
        if not jobs.waiting:
            jobs.begin = max(self._virtual_time, jobs.begin)
        flow.finish = max(jobs.virtual_time, flow.finish) + size
        self._number += 1
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job = _Job(flow.finish, self._number, size, function, future)
        heapq.heappush(jobs.waiting, job)
        self._start_jobs()
        try:
            return await future
        except asyncio.CancelledError:
            job.function = _nothing  # the job may wait for long, and its function refers to the file
            raise
        finally:
            # The traceback of an exception refers to this frame, and the future to the exception. Decoded pixels, to
            # which the traceback refers as well, would remain until the next run of the garbage collector.
            del future, job, function

    def _start_jobs(self) -> None:
        while self._running < self._threads and (jobs := self._next_model()):
            job = jobs.waiting[0]
            if self._running and self._running_bytes + job.size > self._max_bytes:
                return
            heapq.heappop(jobs.waiting)
            jobs.virtual_time = job.finish
            jobs.begin += job.size
            self._virtual_time = max(self._virtual_time, jobs.begin)
            self._running += 1
            self._running_bytes += job.size
            running = asyncio.get_running_loop().run_in_executor(self._executor, job.function)
            running.add_done_callback(partial(self._finish, job))

    def _next_model(self) -> _ModelJobs | None:
        """The jobs of the model whose turn it is; None if no job waits."""
        for jobs in self._models.values():
            while jobs.waiting and jobs.waiting[0].future.done():  # its request was cancelled
                heapq.heappop(jobs.waiting)
        waiting = (jobs for jobs in self._models.values() if jobs.waiting)
        return min(waiting, key=lambda jobs: jobs.begin + jobs.waiting[0].size, default=None)

    def _finish(self, job: _Job, running: asyncio.Future[Any]) -> None:
        self._running -= 1
        self._running_bytes -= job.size
        if not job.future.done():
            if running.cancelled():
                job.future.cancel()
            elif error := running.exception():
                job.future.set_exception(error)
            else:
                job.future.set_result(running.result())
        elif not running.cancelled():
            running.exception()  # nobody waits for it: mark it as retrieved
        self._start_jobs()
