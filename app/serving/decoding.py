"""Where an image is decoded: small plain ones in the event loop, others in child processes that all requests share."""

import asyncio
import heapq
import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from app.engine.errors import NotAlive
from app.engine.threads import compute_threads
from app.serving.children import AVAILABLE, ChildEnded, Children, Result
from model import (
    SMALL_PIXELS,
    ImageTooLarge,
    InputSpec,
    PreprocessedImage,
    UnreadableImage,
    UnsupportedImage,
    decode_memory,
    is_small_and_plain,
    overlay,
    overlay_memory,
    png,
    preprocess,
)

T = TypeVar("T")

logger = logging.getLogger("tenfold")

# Seconds until a file is given up where no request sets a deadline.
_BLOCKING_TIMEOUT = 120
# Memory of a small job, bytes: of a photo of a megapixel, for example, or of a JPEG from a phone, which is decoded at a
# reduced size. It takes a few hundredths of a second.
_SMALL = 32_000_000
# Seconds for the system to end a process.
_END_TIMEOUT = 5.0


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
    turn: asyncio.Future[None] = field(compare=False)


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


class Decoder:
    """Decodes images in child processes, with a limit on the memory of all that are decoded at once.

    Waiting jobs are ordered by self-clocked fair queueing (Golestani 1994, "A self-clocked fair queueing scheme for
    broadband applications"): a job's virtual finish time is its size, in bytes of memory, after the later of the job
    that started last and the previous job of its request. So a small image passes large ones that came before it, a
    request with many images does not hold up the others, and no job waits for ever. The models share the children in
    the same way, so that many requests for one model do not hold up those for another. While only large jobs run, one
    small job does not wait for them, so that a few images that take seconds do not stop all others.

    It belongs to the event loop's thread.

    Args:
        threads: number of jobs that run at once.
        max_bytes: memory of all jobs that run at once. A larger job runs alone.
        max_pixels: largest image, width x height.
        timeout: seconds that decoding one image may take.
        isolated: whether to decode in child processes. Without, and on other systems than Linux, it is done in threads.
        on_crash: called with the reason when a child ends that decodes an image.
    """

    def __init__(
        self,
        *,
        threads: int,
        max_bytes: int,
        max_pixels: int,
        timeout: float = 5.0,
        isolated: bool = True,
        on_crash: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._threads = threads
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._executor: ThreadPoolExecutor = compute_threads(threads + 1, "decode")  # one for a small job
        errors = (ImageTooLarge, UnreadableImage, UnsupportedImage)
        self._children = Children(*errors, seconds=timeout) if isolated and AVAILABLE else None
        self._on_crash = on_crash
        self._models: defaultdict[str, _ModelJobs] = defaultdict(_ModelJobs)
        self._number = 0
        self._virtual_time = 0.0
        self._running = 0
        self._running_bytes = 0
        self._running_small = 0

    def check_alive(self) -> None:
        """Raises:
        NotAlive: a process that decodes images has not ended when it had to.
        """
        if self._children and (seconds := self._children.stalled()) > _END_TIMEOUT:
            raise NotAlive(f"a process that decodes images has not ended for {seconds:.0f} s: restart the service")

    def start(self) -> None:
        """Begin to start what the children are forked from. Images may be decoded before."""
        if self._children:
            self._children.start()

    def stop(self) -> None:
        """End the children and release the threads. Jobs that wait are cancelled."""
        for jobs in self._models.values():
            for job in jobs.waiting:
                job.turn.cancel()
        self._models.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._children:
            self._children.stop()

    async def preprocess(self, data: bytes, spec: InputSpec, views: int, flow: Flow) -> PreprocessedImage:
        """Decode an image file and apply the test transform. See `model.preprocess`.

        Raises:
            ImageError: the image is at fault.
        """
        if is_small_and_plain(data):  # 0.2 ms, as much as the way to a child and back
            with suppress(ImageTooLarge):  # Pillow may find another size than the header check
                return preprocess(data, spec, max_pixels=min(SMALL_PIXELS, self._max_pixels), views=views)
        size = decode_memory(data, side=spec.resize, max_pixels=self._max_pixels)
        values, pixels = await self._decode(_preprocess, spec, self._max_pixels, views, data=data, size=size, flow=flow)
        shape, boxes, width, height, warnings = values
        return PreprocessedImage(
            np.frombuffer(bytearray(pixels), np.uint8).reshape(shape),
            tuple((left, top, right, bottom) for left, top, right, bottom in boxes),
            width,
            height,
            tuple(warnings),
        )

    async def draw(
        self,
        data: bytes,
        image: PreprocessedImage,
        maps: NDArray[np.float32],
        scale: NDArray[np.float32] | None,
        flow: Flow,
    ) -> bytes:
        """Draw maps over an image file. See `model.overlay`.

        Returns:
            A PNG file.

        Raises:
            ImageError: the image is at fault.
        """
        size = overlay_memory(data, max_pixels=self._max_pixels)
        return (await self._decode(_draw, image, maps, scale, self._max_pixels, data=data, size=size, flow=flow))[1]

    async def run(self, function: Callable[[], T], *, size: int, flow: Flow) -> T:
        """Run a function that reads no file in a thread when its turn comes.

        Args:
            function: called without arguments.
            size: bytes of memory that it takes at most.
            flow: of its request.

        Raises:
            Exception: whatever the function raised.
        """
        try:
            await self._turn(size, flow)
        except asyncio.CancelledError:
            del function  # the traceback refers to this frame, and the function perhaps to a file
            raise
        running = asyncio.get_running_loop().run_in_executor(self._executor, function)
        running.add_done_callback(partial(self._release, size))
        del function
        try:
            return await asyncio.shield(running)
        finally:
            # The traceback of an exception refers to this frame, and the future to the exception. Decoded pixels, to
            # which the traceback refers as well, would remain until the next run of the garbage collector.
            del running

    async def _decode(
        self, function: Callable[..., Result], *arguments: Any, data: bytes, size: int, flow: Flow
    ) -> Result:
        """Call a function with a file in a child when its turn comes."""
        if not self._children:
            return await self.run(partial(function, data, *arguments), size=size, flow=flow)
        await self._turn(size, flow)
        try:
            try:
                return await self._children.run(function, *arguments, data=data, memory=size)
            except ChildEnded as ended:
                if not ended.lost:
                    raise
            return await self._children.run(function, *arguments, data=data, memory=size)
        except ChildEnded as ended:
            logger.warning("an image of %d bytes ended the process that decoded it: %s", len(data), ended)
            self._on_crash(ended.reason)
            raise UnreadableImage(
                "the image is damaged and made its decoder fail: save it again and upload it again"
                if ended.reason == "crash"
                else "decoding the image takes too much time: save it smaller or in another format and upload it again"
            ) from None
        finally:
            self._release(size)

    async def _turn(self, size: int, flow: Flow) -> None:
        """Wait until the turn of a job comes, which holds `size` bytes until `_release`."""
        jobs = self._models[flow.model]
        if not jobs.waiting:
            jobs.begin = max(self._virtual_time, jobs.begin)
        flow.finish = max(jobs.virtual_time, flow.finish) + size
        self._number += 1
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(jobs.waiting, _Job(flow.finish, self._number, size, turn))
        self._start_jobs()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same time
                self._release(size)
            raise

    def _start_jobs(self) -> None:
        while jobs := self._next_model():
            job = jobs.waiting[0]
            if self._running >= self._threads or not self._fits(job):
                small = None if self._running_small else self._next_small()
                if not small:
                    return
                jobs, job = small
            jobs.virtual_time = max(jobs.virtual_time, job.finish)
            jobs.begin += job.size
            self._virtual_time = max(self._virtual_time, jobs.begin)
            self._running += 1
            self._running_bytes += job.size
            self._running_small += job.size <= _SMALL
            job.turn.set_result(None)

    def _fits(self, job: _Job) -> bool:
        return not self._running or self._running_bytes + job.size <= self._max_bytes

    def _next_small(self) -> tuple[_ModelJobs, _Job] | None:
        """The small job whose turn it is among those that fit."""
        small = (
            (jobs.begin + job.size, job, jobs)
            for jobs in self._models.values()
            for job in jobs.waiting
            if job.size <= _SMALL and not job.turn.done() and self._fits(job)
        )
        found = min(small, key=lambda each: each[:2], default=None)
        return (found[2], found[1]) if found else None

    def _next_model(self) -> _ModelJobs | None:
        """The jobs of the model whose turn it is; None if no job waits."""
        for jobs in self._models.values():
            while jobs.waiting and jobs.waiting[0].turn.done():  # it was started, or its request was cancelled
                heapq.heappop(jobs.waiting)
        waiting = (jobs for jobs in self._models.values() if jobs.waiting)
        return min(waiting, key=lambda jobs: jobs.begin + jobs.waiting[0].size, default=None)

    def _release(self, size: int, running: asyncio.Future[Any] | None = None) -> None:
        self._running -= 1
        self._running_bytes -= size
        self._running_small -= size <= _SMALL
        if running and not running.cancelled():
            running.exception()  # perhaps nobody waits for it: mark it as retrieved
        self._start_jobs()


class BlockingDecoder:
    """A `Decoder` for threads, which runs in an event loop of its own.

    Args:
        threads: as for `Decoder`.
        max_bytes: likewise.
        max_pixels: likewise.
    """

    def __init__(self, *, threads: int, max_bytes: int, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._decoder = Decoder(threads=threads, max_bytes=max_bytes, max_pixels=max_pixels, timeout=_BLOCKING_TIMEOUT)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="decoder", daemon=True).start()
        self._loop.call_soon_threadsafe(self._decoder.start)

    def preprocess(self, data: bytes, spec: InputSpec, views: int) -> PreprocessedImage:
        """See `Decoder.preprocess`. It may be called in several threads at once.

        Raises:
            ImageError: the image is at fault.
        """
        if is_small_and_plain(data):
            with suppress(ImageTooLarge):
                return preprocess(data, spec, max_pixels=min(SMALL_PIXELS, self._max_pixels), views=views)
        return asyncio.run_coroutine_threadsafe(self._preprocess(data, spec, views), self._loop).result()

    def stop(self) -> None:
        """End the children and the event loop."""
        self._loop.call_soon_threadsafe(self._decoder.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _preprocess(self, data: bytes, spec: InputSpec, views: int) -> PreprocessedImage:
        try:
            async with asyncio.timeout(_BLOCKING_TIMEOUT):
                return await self._decoder.preprocess(data, spec, views, Flow(""))
        except TimeoutError:
            raise UnreadableImage(f"the image is not decoded after {_BLOCKING_TIMEOUT} s: save it again") from None


# In a child


def _preprocess(data: bytes, spec: InputSpec, max_pixels: int, views: int) -> Result:
    image = preprocess(data, spec, max_pixels=max_pixels, views=views)
    return (image.pixels.shape, image.boxes, image.width, image.height, image.warnings), image.pixels.tobytes()


def _draw(
    data: bytes,
    image: PreprocessedImage,
    maps: NDArray[np.float32],
    scale: NDArray[np.float32] | None,
    max_pixels: int,
) -> Result:
    return None, png(overlay(data, image, maps, scale=scale, max_pixels=max_pixels))
