"""What the routes are given: the classifier with its batcher, and whether it may be used."""

import asyncio
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from fastapi import Request

from app.http.upload import Upload
from app.serving.batching import Batcher
from app.serving.errors import NotAlive, NotReady, TooManyUploads
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import (
    Classifier,
    ImageError,
    ImageTooLarge,
    InputSpec,
    ModelError,
    Prediction,
    PreprocessedImage,
    preprocess,
)

logger = logging.getLogger("tenfold")

# Of the threads that compute; 0 is the event loop's.
_NICE = 10
# What is decoded in the event loop: 0.2 ms for a CIFAR-10 picture as PNG, where the way to a thread and back is 0.25.
_SMALL_FORMATS = (b"\x89PNG", b"\xff\xd8\xff")
_SMALL_BYTES = 16_384
_SMALL_PIXELS = 4_096

# Seconds between two looks at the engine.
_WATCH = 0.5

T = TypeVar("T")

State = Literal["loading", "ready", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class ClassifiedImage:
    """A classified picture, and the seconds that it took to decode, waited, and its batch took."""

    picture: PreprocessedImage
    prediction: Prediction
    decode: float
    queued: float
    inference: float


class Service:
    """Loads the classifier in the background, so that probes are answered meanwhile, and runs pictures through it.

    Args:
        settings: limits and sizes.
        load: gives the classifier, loaded and self-tested; called in the engine's thread.
        on_failure: called when `load` fails or the engine stops working: only a new process helps.
    """

    def __init__(self, settings: Settings, load: Callable[[], Classifier], on_failure: Callable[[], None]) -> None:
        self.settings = settings
        self.telemetry = Telemetry(pictures=lambda: self.admitted, uploads=lambda: self._uploads)
        self.state: State = "loading"
        self._uploads = 0
        self._load = load
        self._on_failure = on_failure
        self._reason = "the model is loading: ask again in a second"
        self._classifier: Classifier | None = None
        self._batcher: Batcher | None = None
        self._engine_thread = ThreadPoolExecutor(1, "engine", _give_way)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode", _give_way)

    async def start(self) -> None:
        """Begin to load, and then to watch the engine."""
        self._life = asyncio.create_task(self._load_and_watch(), name="life")

    async def stop(self) -> None:
        """Let go of the threads. The server has answered everything by now."""
        self._life.cancel()
        await asyncio.wait([self._life])
        if self._batcher:
            await self._batcher.stop()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._engine_thread.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Say "not ready" from now on, but go on answering."""
        if self.state != "failed":
            self._enter("draining", "the service is going down: send requests elsewhere")

    def check_alive(self) -> None:
        """Raises:
        NotAlive: loading failed, or the engine does not work.
        """
        if self.state == "failed":
            raise NotAlive(self._reason)
        if self._batcher:
            self._batcher.check()

    def check_ready(self) -> None:
        """Raises:
        NotReady: loading, failed or draining.
        NotAlive: the engine does not work.
        """
        if self.state != "ready":
            raise NotReady(self._reason)
        self.check_alive()

    @property
    def classifier(self) -> Classifier:
        """The classifier.

        Raises:
            NotReady: it is not loaded.
        """
        if self._classifier is None:
            raise NotReady(self._reason)
        return self._classifier

    @property
    def admitted(self) -> int:
        """Images under way, over all requests."""
        return self._batcher.admitted if self._batcher else 0

    @contextmanager
    def uploading(self, *, deadline: float = math.inf) -> Iterator[None]:
        """Hold room for a request whose body is being read.

        Raises:
            TooManyUploads: there is none.
            QueueFull: not even for one picture before the deadline, so that its body need not be read.
        """
        if self._batcher:
            self._batcher.check_room(1, deadline=deadline)
        if self._uploads >= self.settings.max_uploads:
            raise TooManyUploads(f"{self._uploads} uploads are under way: send this one again in a second")
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def classify(
        self, uploads: Sequence[Upload], views: int, *, deadline: float = math.inf
    ) -> list[ClassifiedImage | ImageError]:
        """Decode and classify pictures, large ones by so many views; each stands or falls alone.

        A picture whose deadline (time.monotonic) has passed when its turn comes is not run.

        Raises:
            NotReady: the model is not loaded.
            NotAlive: the engine does not work.
            QueueFull: no room for so many pictures.
            Exception: what the classifier raised for one of them; the others leave the queue.
        """
        batcher = self._working()
        with batcher.admit(len(uploads), deadline=deadline):
            if len(uploads) == 1:  # as most are: no task of its own
                return [await self._classify(batcher, uploads[0].data, views, deadline)]
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(self._classify(batcher, upload.data, views, deadline)) for upload in uploads
                    ]
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            return [task.result() for task in tasks]

    async def explain(
        self, upload: Upload, views: int, draw: Callable[[ClassifiedImage], T], *, deadline: float = math.inf
    ) -> tuple[ClassifiedImage, T] | ImageError:
        """Classify one picture as `classify` does, and draw what explains its answer, in a thread that decodes.

        Raises:
            NotReady, NotAlive, QueueFull, Exception: as `classify`.
        """
        batcher = self._working()
        with batcher.admit(1, deadline=deadline):
            answer = await self._classify(batcher, upload.data, views, deadline)
            if isinstance(answer, ImageError):
                return answer
            return answer, await asyncio.get_running_loop().run_in_executor(self._decoders, draw, answer)

    def _working(self) -> Batcher:
        if self._batcher is None:
            raise NotReady(self._reason)
        if self.state == "failed":
            raise NotAlive(self._reason)
        return self._batcher

    async def _classify(
        self, batcher: Batcher, data: bytes, views: int, deadline: float
    ) -> ClassifiedImage | ImageError:
        began = time.monotonic()
        loop = asyncio.get_running_loop()
        spec, limit = self.classifier.card.input, self.settings.max_pixels
        try:
            picture = _prepared_at_once(data, spec, min(limit, _SMALL_PIXELS), views)
            if picture is None:
                picture = await loop.run_in_executor(
                    self._decoders, lambda: preprocess(data, spec, max_pixels=limit, views=views)
                )
        except ImageError as error:
            return error
        decode = time.monotonic() - began
        batched = await batcher.classify(picture.pixels, deadline=deadline)
        return ClassifiedImage(picture, batched.prediction, decode, batched.queued, batched.inference)

    async def _load_and_watch(self) -> None:
        try:
            self._classifier = await asyncio.get_running_loop().run_in_executor(self._engine_thread, self._load)
        except Exception as error:
            expected = isinstance(error, ModelError)
            logger.error("the model cannot be loaded: %s", error, exc_info=None if expected else error)
            self._fail("the model could not be loaded: see the service's log")
            return
        settings = self.settings
        self._batcher = Batcher(
            self._classifier.classify,
            self._engine_thread,
            max_batch=settings.max_batch,
            queue_size=settings.queue_size,
            stall_timeout=settings.stall_timeout,
            telemetry=self.telemetry,
        )
        card, engine = self._classifier.card, self._classifier.engine
        logger.info("serving %s on %s (%s, %s)", card.name, engine.name, engine.device, engine.precision)
        self.telemetry.model(
            name=card.name, version=card.version, engine=engine.name, device=engine.device, precision=engine.precision
        )
        if self.state == "loading":
            self._enter("ready", "")
        await self._watch(self._batcher)

    async def _watch(self, batcher: Batcher) -> None:
        """Look after the engine until it no longer works."""
        while True:
            await asyncio.sleep(_WATCH)
            self.telemetry.sample_gauges()
            try:
                batcher.check()
            except NotAlive as error:
                logger.critical("the engine does not work any more: %s", error)
                self._fail(str(error))
                return

    def _fail(self, reason: str) -> None:
        self._enter("failed", reason)
        self._on_failure()

    def _enter(self, state: State, reason: str) -> None:
        self.state, self._reason = state, reason
        self.telemetry.ready(state == "ready")


def _prepared_at_once(data: bytes, spec: InputSpec, max_pixels: int, views: int) -> PreprocessedImage | None:
    """A small picture in a common format, in the event loop: a thread would take longer to wake than it to decode.

    Returns:
        None for any other: it goes to a thread.

    Raises:
        ImageError: it is damaged.
    """
    if len(data) > _SMALL_BYTES or not data.startswith(_SMALL_FORMATS):
        return None
    try:
        return preprocess(data, spec, max_pixels=max_pixels, views=views)
    except ImageTooLarge:
        return None


def _give_way() -> None:
    """Let the event loop run first where cores are few, so that probes and refusals do not wait for inference."""
    if sys.platform == "linux":  # where a thread has a priority of its own; those that it starts inherit it
        thread = threading.get_native_id()
        # Never back up: that takes rights.
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICE, os.getpriority(os.PRIO_PROCESS, thread)))


async def service_of(request: Request) -> Service:
    """The service of the application that answers the request. A coroutine: a plain function would cost a thread."""
    service: Service = request.app.state.service
    return service
