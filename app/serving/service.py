"""What the routes work with: the models, the limits, the metrics, and whether the service may be used."""

import asyncio
import logging
from collections.abc import Callable
from typing import Literal

from app.serving.admission import Admission
from app.serving.batching import Batcher
from app.serving.decoding import Decoder
from app.serving.errors import NotAlive, NotReady
from app.serving.models import LoadedModel, Registry
from app.serving.threads import compute_threads
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import Classifier, ModelError

logger = logging.getLogger("tenfold")

# Seconds between two checks of the engine.
_CHECK_INTERVAL = 0.5

State = Literal["loading", "ready", "draining", "failed"]


class Service:
    """Loads the model in the background, so that probes get responses meanwhile, and watches its engine.

    Its methods belong to the event loop's thread.

    Args:
        settings: limits and sizes.
        load: returns the classifier, loaded and self-tested. Called in the engine's thread.
        on_failure: called when `load` fails or the engine stops working. Only a new process helps then.

    Attributes:
        admission: the limits over all requests.
        decoder: the threads that decode.
        models: what is loaded.
        state: what /readyz and /livez report.
        telemetry: the metrics.
    """

    def __init__(self, settings: Settings, load: Callable[[], Classifier], on_failure: Callable[[], None]) -> None:
        self.settings = settings
        self.admission = Admission(
            max_images=settings.queue_size, max_uploads=settings.max_uploads, max_held_bytes=settings.max_held_bytes
        )
        self.decoder = Decoder(
            threads=settings.decode_threads, max_bytes=settings.max_decode_bytes, max_pixels=settings.max_pixels
        )
        self.models = Registry()
        self.state: State = "loading"
        self.telemetry = Telemetry(
            images=lambda: self.admission.images_in_progress, uploads=lambda: self.admission.uploads_in_progress
        )
        self._load = load
        self._on_failure = on_failure
        self._reason = "the model is loading: send the request again in a second"
        self._engine_thread = compute_threads(1, "engine")

    async def start(self) -> None:
        """Begin to load, and then to watch the engine."""
        self._life = asyncio.create_task(self._load_and_watch(), name="life")

    async def stop(self) -> None:
        """Release the threads. The server has finished every request before."""
        self._life.cancel()
        await asyncio.wait([self._life])
        for model in self.models:
            await model.batcher.stop()
        self.decoder.stop()
        self._engine_thread.shutdown(wait=False, cancel_futures=True)

    def drain(self) -> None:
        """Report "not ready" from now on, and continue to answer requests. Not for signal handlers."""
        if self.state != "failed":
            self._enter("draining", "the service is shutting down: send requests elsewhere")

    @property
    def closing(self) -> bool:
        """Whether connections should be closed after their response."""
        return self.state in ("draining", "failed")

    @property
    def model(self) -> LoadedModel:
        """The default model.

        Raises:
            NotReady: it is not loaded.
            NotAlive: it was loaded, and its engine does not work any more.
        """
        model = self.models.default
        if model is None:
            raise NotReady(self._reason)
        if self.state == "failed":
            raise NotAlive(self._reason)
        return model

    def check_alive(self) -> None:
        """Raises:
        NotAlive: loading failed, or an engine does not work.
        """
        if self.state == "failed":
            raise NotAlive(self._reason)
        for model in self.models:
            model.batcher.check()

    def check_ready(self) -> None:
        """Raises:
        NotReady: loading, failed or draining.
        NotAlive: an engine does not work.
        """
        if self.state != "ready":
            raise NotReady(self._reason)
        self.check_alive()

    async def _load_and_watch(self) -> None:
        try:
            model = await self._loaded()
        except ModelError as error:
            logger.error("the model cannot be loaded: %s", error)
            self._fail("the model could not be loaded: see the log of the service")
        except Exception:
            logger.exception("the model cannot be loaded")
            self._fail("the model could not be loaded: see the log of the service")
        else:
            await self._watch(model)

    async def _loaded(self) -> LoadedModel:
        """Load the model and serve it."""
        classifier = await asyncio.get_running_loop().run_in_executor(self._engine_thread, self._load)
        card, engine = classifier.card, classifier.engine
        batcher = Batcher(
            classifier.classify,
            self._engine_thread,
            max_batch=self.settings.max_batch or engine.preferred_batch,
            stall_timeout=self.settings.stall_timeout,
            admission=self.admission,
            telemetry=self.telemetry,
        )
        model = LoadedModel(classifier, batcher, self.decoder)
        self.models.add(model)
        logger.info("serving %s on %s (%s, %s)", card.name, engine.name, engine.device, engine.precision)
        self.telemetry.model(
            name=card.name, version=card.version, engine=engine.name, device=engine.device, precision=engine.precision
        )
        if self.state == "loading":
            self._enter("ready", "")
        return model

    async def _watch(self, model: LoadedModel) -> None:
        """Check the engine until it does not work any more."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL)
            try:
                self.telemetry.sample_gauges()
                model.batcher.check()
            except NotAlive as error:
                logger.critical("the engine does not work any more: %s", error)
                self._fail(str(error))
                return
            except Exception:
                logger.exception("the metrics cannot be sampled")

    def _fail(self, reason: str) -> None:
        self._enter("failed", reason)
        self._on_failure()

    def _enter(self, state: State, reason: str) -> None:
        self.state, self._reason = state, reason
        self.telemetry.ready(state == "ready")
