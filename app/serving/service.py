"""What the routes work with: the models, the limits, the metrics, and whether the service may be used."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Literal

from app.feedback.recorder import Recorder
from app.feedback.store import Limits as FeedbackLimits
from app.serving.admission import Admission, Limits
from app.serving.batching import Batcher
from app.serving.decoding import Decoder
from app.serving.drift import DISTRIBUTIONS, Baseline, Counts, Distribution, Drift, Window, compare
from app.serving.errors import NotAlive, NotReady
from app.serving.models import LoadedModel, Registry
from app.serving.threads import compute_threads
from app.settings import Settings
from app.telemetry.metrics import Telemetry, drift_images
from model import BundleError, Classifier, ModelError

logger = logging.getLogger("tenfold")

# Seconds between two checks of the engines.
_CHECK_INTERVAL = 0.5

State = Literal["loading", "ready", "draining", "failed"]

Load = Callable[[], Classifier]
"""Returns the classifier of a model, loaded and self-tested. Called in the thread of its engine."""


class Service:
    """Loads the models in the background, so that probes get responses meanwhile, and watches their engines.

    Its methods belong to the event loop's thread.

    Args:
        settings: limits and sizes.
        models: name to load function, in order. The first model is the default.
        on_failure: called when a model cannot be loaded or an engine stops working. Only a new process helps then.

    Attributes:
        limits: over all requests and models.
        decoder: the child processes that decode.
        models: what is loaded.
        state: what /readyz and /livez report.
        telemetry: the metrics.
        feedback: stores predictions; None if the settings do not name a file.
    """

    def __init__(self, settings: Settings, models: Mapping[str, Load], on_failure: Callable[[], None]) -> None:
        self.settings = settings
        self.limits = Limits(
            models,
            max_images=settings.queue_size,
            max_uploads=settings.max_uploads,
            max_held_bytes=settings.max_held_bytes,
        )
        self.models = Registry(models)
        self.state: State = "loading"
        self.telemetry = Telemetry(
            images=lambda: self.limits.images.used,
            uploads=lambda: self.limits.uploads.used,
            windows=lambda: {model.name: model.window.counts for model in self.models if model.window},
        )
        self.decoder = Decoder(
            threads=settings.decoders,
            max_bytes=settings.max_decode_bytes,
            max_pixels=settings.max_pixels,
            timeout=settings.decode_timeout,
            on_crash=self.telemetry.decoder_ended,
        )
        self.feedback: Recorder | None = None
        if settings.feedback:
            limits = FeedbackLimits(
                rows=settings.feedback_rows, size=settings.feedback_bytes, seconds=settings.feedback_days * 86_400
            )
            self.feedback = Recorder(settings.feedback, limits, self.telemetry)
            self.telemetry.expect_feedback(models)
        self._load = dict(models)
        self._loading = asyncio.Lock()
        self._admission = {name: Admission(name, self.limits) for name in models}
        self._on_failure = on_failure
        self._releases: dict[Batcher, weakref.finalize[[asyncio.AbstractEventLoop, Batcher], LoadedModel]] = {}

    async def start(self) -> None:
        """Begin to load the models, and to watch their engines."""
        self.decoder.start()
        if self.feedback:
            self.feedback.start()
        self._tasks = [
            asyncio.create_task(self._load_all(), name="load"),
            asyncio.create_task(self._watch(), name="watch"),
        ]

    async def stop(self) -> None:
        """Release the threads. The server has finished every request before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for batcher, release in list(self._releases.items()):
            release.detach()
            await batcher.stop()
        self.decoder.stop()
        if self.feedback:
            await self.feedback.stop()

    async def wait_loaded(self) -> None:
        """Wait until the models of the start are loaded, or one cannot be loaded."""
        await asyncio.wait(self._tasks[:1])

    def drain(self) -> None:
        """Report "not ready" from now on, and continue to answer requests. Not for signal handlers."""
        if self.state != "failed":
            self._enter("draining")

    @property
    def closing(self) -> bool:
        """Whether connections should be closed after their response."""
        return self.state in ("draining", "failed")

    def check_ready(self) -> None:
        """Raises:
        NotReady: a model is loading, or the service is draining.
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        self.models.check_ready()
        if self.state == "draining":
            raise NotReady("the service is shutting down: send requests elsewhere")

    def drift(self) -> dict[str, Drift]:
        """By name of each loaded model with a window: the last images of all processes against the reference.

        It may be called in any thread.
        """
        return self._drift(drift_images(self.telemetry.collect()))

    def exposition(self) -> bytes:
        """The metrics of all processes in Prometheus's text format. It may be called in any thread."""
        metrics = self.telemetry.collect()
        found = self._drift(drift_images(metrics))
        for model in self.models:
            comparisons = found[model.name].comparisons if model.name in found else {}
            for name in DISTRIBUTIONS:
                compared = comparisons.get(name)
                values = {"psi": compared.psi, "limit": compared.limit} if compared else {}
                self.telemetry.drift(model.name, name, **values)
        return self.telemetry.exposition(metrics)

    async def load_model(self, name: str, load: Load) -> LoadedModel:
        """Load a model and start its engine's thread and its queue. It gets no requests yet.

        The thread and the queue end once nothing refers to the model.

        Args:
            name: that its card must have.
            load: called in the thread.

        Raises:
            BundleError: the card has another name.
            Exception: whatever `load` raised.
        """
        engine_thread = compute_threads(1, f"engine-{name}")
        try:
            async with self._loading:
                classifier = await _finished(asyncio.get_running_loop().run_in_executor(engine_thread, load))
            card, engine = classifier.card, classifier.engine
            if card.name != name:
                raise BundleError(f"the name on the card is {card.name}, not {name}: change it, or restart the service")
            admission = self._admission[name]
            batcher = Batcher(
                name,
                classifier.classify,
                engine_thread,
                max_batch=self.settings.max_batch or engine.preferred_batch,
                stall_timeout=self.settings.stall_timeout,
                admission=admission,
                telemetry=self.telemetry,
            )
        except BaseException:
            engine_thread.shutdown(wait=False, cancel_futures=True)
            raise
        size = self.settings.drift_window
        window = Window(Baseline(card.reference, size), size) if card.reference and size else None
        model = LoadedModel(classifier, batcher, admission, self.decoder, window)
        self._releases[batcher] = weakref.finalize(model, self._release_soon, asyncio.get_running_loop(), batcher)
        return model

    def serve(self, model: LoadedModel) -> None:
        """Serve a model under its name. The one that had the name before ends after its last request."""
        for before in self.models:
            if before.name == model.name:
                self.telemetry.model_gone(**_info(before))
        self.models.put(model)
        card, engine = model.card, model.classifier.engine
        logger.info("serving %s on %s (%s, %s)", card.name, engine.name, engine.device, engine.precision)
        self.telemetry.model(**_info(model))

    def _drift(self, images: Mapping[str, Mapping[tuple[str, int], int]]) -> dict[str, Drift]:
        settings = self.settings
        thresholds: dict[Distribution, float] = {
            "classes": settings.drift_classes,
            "confidence": settings.drift_confidence,
            "in_distribution": settings.drift_in_distribution,
        }
        found = {}
        for model in self.models:
            if model.window:
                baseline, bins = model.window.baseline, images.get(model.name, {})
                counts: Counts = {
                    name: [bins.get((name, index), 0) for index in range(len(baseline.counts[name]))]
                    for name in DISTRIBUTIONS
                }
                found[model.name] = compare(
                    baseline,
                    counts,
                    labels=model.card.labels,
                    thresholds=thresholds,
                    min_images=settings.drift_min_images,
                )
        return found

    def _release_soon(self, loop: asyncio.AbstractEventLoop, batcher: Batcher) -> None:
        """Release a model to which nothing refers, from whichever thread the last reference was dropped in."""
        loop.call_soon_threadsafe(lambda: loop.create_task(self._release(batcher)))

    async def _release(self, batcher: Batcher) -> None:
        if self._releases.pop(batcher, None):
            await batcher.stop()

    async def _load_all(self) -> None:
        """Load one model after the other, because each uses all CPUs to load, and serve it."""
        for name, load in self._load.items():
            try:
                model = await self.load_model(name, load)
            except ModelError as error:
                logger.error("the model %s cannot be loaded: %s", name, error)
            except Exception:
                logger.exception("the model %s cannot be loaded", name)
            else:
                self.serve(model)
                continue
            self._fail(name, f"the model {name} could not be loaded: see the log of the service")
            return
        if self.state == "loading":
            self._enter("ready")

    async def _watch(self) -> None:
        """Check the engines until one does not work any more."""
        while True:
            await asyncio.sleep(_CHECK_INTERVAL)
            try:
                self.telemetry.sample_gauges()
                for model in self.models:
                    try:
                        model.check_alive()
                    except NotAlive as error:
                        logger.critical("%s", error)
                        self._fail(model.name, str(error))
                        return
            except Exception:
                logger.exception("the metrics cannot be sampled")

    def _fail(self, name: str, reason: str) -> None:
        self.models.fail(name, reason)
        self._enter("failed")
        self._on_failure()

    def _enter(self, state: State) -> None:
        self.state = state
        self.telemetry.ready(state == "ready")


async def _finished(loading: asyncio.Future[Classifier]) -> Classifier:
    """The result of a thread. A cancelled call ends after the thread, so that no other model is loaded meanwhile."""
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        await asyncio.wait([loading])
        raise


def _info(model: LoadedModel) -> dict[str, str]:
    """What the metrics say of a model."""
    card, engine = model.card, model.classifier.engine
    return {
        "model": card.name,
        "version": card.version,
        "engine": engine.name,
        "device": engine.device,
        "precision": engine.precision,
    }
