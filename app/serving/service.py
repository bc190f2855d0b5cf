"""What the routes work with: the engine, the decoder, the limits and the metrics."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

from app.engine.api import EngineClient
from app.engine.errors import NotAlive, NotReady, ServingError
from app.serving.admission import Limits
from app.serving.decoding import Decoder
from app.settings import Settings
from app.telemetry.metrics import Telemetry

# Seconds between two samples of the gauges, which other processes report too.
_SAMPLE_INTERVAL = 0.5

State = Literal["loading", "ready", "draining", "failed"]


class Service:
    """What a process that speaks HTTP has. Its methods belong to the event loop's thread.

    Args:
        settings: limits and sizes.
        engine: classifies the images.
        telemetry: the metrics.

    Attributes:
        limits: on request bodies, over all requests and models.
        decoder: the child processes that decode.
        draining: whether the service shuts down.
    """

    def __init__(self, settings: Settings, engine: EngineClient, telemetry: Telemetry) -> None:
        self.settings = settings
        self.engine = engine
        self.telemetry = telemetry
        self.limits = Limits(
            engine.catalog.names, max_uploads=settings.max_uploads, max_held_bytes=settings.max_held_bytes
        )
        self.decoder = Decoder(
            threads=settings.decoders,
            max_bytes=settings.max_decode_bytes,
            max_pixels=settings.max_pixels,
            timeout=settings.decode_timeout,
            on_crash=telemetry.decoder_ended,
        )
        self.draining = False

    async def start(self) -> None:
        """Begin to load the models, or to connect to the process that owns them."""
        self.decoder.start()
        await self.engine.start()
        self._sampling = asyncio.create_task(self._sample(), name="sample")

    async def stop(self) -> None:
        """Release what `start` began. The server has finished every request before."""
        self._sampling.cancel()
        await self.engine.stop()
        self.decoder.stop()

    def drain(self) -> None:
        """Report "not ready" from now on, and continue to answer requests. Not for signal handlers."""
        self.draining = True
        self.engine.drain()

    @property
    def state(self) -> State:
        """What /readyz reports."""
        try:
            self.check_ready()
        except NotAlive:
            return "failed"
        except NotReady:
            return "draining" if self.draining else "loading"
        return "ready"

    @property
    def closing(self) -> bool:
        """Whether connections should be closed after their response."""
        return self.draining or self.engine.catalog.failed

    def check_ready(self) -> None:
        """Raises:
        NotReady: a model is loading, or the service is draining.
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        self.engine.check_ready()
        if self.draining:
            raise NotReady("the service is shutting down: send requests elsewhere")

    @contextmanager
    def upload(self, model: str, *, deadline: float, small: bool = False) -> Iterator[None]:
        """Hold room for a request while its body is read.

        Args:
            model: name of the model that it is for.
            deadline: of the request, as time.monotonic().
            small: see `Limits.upload`.

        Raises:
            TooManyUploads: too many bodies are being read.
            QueueFull: not even one image could be admitted now, so the body need not be read.
        """
        self.engine.check_images(model, 1, deadline=deadline)
        with self.limits.upload(model, small=small):
            yield

    async def exposition(self) -> bytes:
        """The metrics of all processes in Prometheus's text format."""
        with suppress(ServingError):  # those of the engine are missing while it is started again
            await self.engine.sample()
        self._sample_gauges()
        return await asyncio.to_thread(self.telemetry.exposition)

    async def _sample(self) -> None:
        while True:
            self._sample_gauges()
            await asyncio.sleep(_SAMPLE_INTERVAL)

    def _sample_gauges(self) -> None:
        self.telemetry.uploads_in_progress(self.limits.uploads.used)
        self.telemetry.ready(self.state == "ready")
