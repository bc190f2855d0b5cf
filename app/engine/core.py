"""The engine in this process: `EngineClient` without a socket."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.engine.admission import Load as ImageLoad
from app.engine.api import Batched, ModelInfo, Source
from app.engine.drift import DISTRIBUTIONS, Distribution, Drift, compare
from app.engine.models import Load, LoadedModel, Models
from app.engine.status import ShadowPlan, Status
from app.engine.swap import LoadFolder, Swaps
from app.feedback.recorder import Recorder
from app.feedback.store import Limits as FeedbackLimits
from app.feedback.store import Stored
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import Prediction


class CoreLease:
    """See `Lease`. It keeps its version loaded and its images counted until `close`."""

    def __init__(self, core: "EngineCore", loaded: LoadedModel, count: int, deadline: float) -> None:
        loaded.admission.admit(count, deadline=deadline)
        loaded.use()
        self.model: ModelInfo = loaded.info
        self._core = core
        self._loaded = loaded
        self._count = count
        self._admitted = time.monotonic()
        self._deadline = deadline

    @property
    def load(self) -> ImageLoad:
        """The images in progress for the model now."""
        return self._loaded.admission.load

    def close(self) -> None:
        """Release the room of the images, and the version if it was replaced."""
        self._loaded.admission.release(self._count)
        self._loaded.leave()

    def submit(self, images: Sequence[NDArray[np.uint8]]) -> asyncio.Future[list[Batched]]:
        """Queue images. See `Batcher.submit`."""
        return self._loaded.batcher.submit(images, admitted=self._admitted, deadline=self._deadline)

    def record(self, results: Sequence[Batched], sources: Sequence[Source]) -> None:
        """Store predictions for feedback, if there are sources."""
        for source, result in zip(sources, results, strict=False):
            self._core.record(self._loaded, result.prediction, source)

    async def classify(
        self, images: Sequence[NDArray[np.uint8]], sources: Sequence[Source] = (), *, maps: bool = False
    ) -> list[Batched]:
        """See `Lease.classify`."""
        del maps  # the predictions have them in any case
        results = await self.submit(images)
        self.record(results, sources)
        return results

    async def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        """See `Lease.grad_cam`."""
        return await self._loaded.batcher.in_engine_thread(lambda classifier: classifier.grad_cam(pixels, index))


class EngineCore:
    """Owns the models, their queues, swaps, drift and feedback. See `EngineClient` for the methods.

    Args:
        settings: limits and sizes.
        load: name to load functions of each model, one for each lane, the default model first.
        telemetry: the metrics.
        load_folder: loads other weights.
        folders: name of each model -> folder of its bundle, for those that were loaded from one.
        on_failure: called when a model cannot be loaded or an engine stops working. Only a new process helps then.
        on_commit: see `Swaps`.

    Attributes:
        models: what is loaded.
        catalog: what is served.
        swaps: replaces weights.
    """

    def __init__(
        self,
        settings: Settings,
        load: Mapping[str, Sequence[Load]],
        telemetry: Telemetry,
        *,
        load_folder: LoadFolder,
        folders: Mapping[str, Path],
        on_failure: Callable[[], None],
        on_commit: Callable[[str, Path], None] | None = None,
    ) -> None:
        self.models = Models(settings, load, telemetry, on_failure)
        self.catalog = self.models.catalog
        self.swaps = Swaps(
            self.models,
            load_folder,
            folders,
            settings.new_weights_root,
            min_confidence=settings.min_confidence,
            telemetry=telemetry,
            on_commit=on_commit,
        )
        self._settings = settings
        self._telemetry = telemetry
        self._feedback: Recorder | None = None
        if settings.feedback:
            limits = FeedbackLimits(
                rows=settings.feedback_rows, size=settings.feedback_bytes, seconds=settings.feedback_days * 86_400
            )
            self._feedback = Recorder(settings.feedback, limits, telemetry)
            telemetry.expect_feedback(load)

    async def start(self) -> None:
        """Begin to load the models, and to watch their engines."""
        if self._feedback:
            self._feedback.start()
        self.models.start()

    async def stop(self) -> None:
        """Release the threads. Every request has ended before."""
        self.swaps.interrupt()
        await self.models.stop()
        if self._feedback:
            await self._feedback.stop()

    def drain(self) -> None:
        """Give up a swap that is in progress, because the service shuts down."""
        self.swaps.interrupt()

    def check_alive(self) -> None:
        """See `EngineClient.check_alive`."""
        self.models.check_alive()

    def check_ready(self) -> None:
        """See `EngineClient.check_ready`."""
        self.models.check_alive()
        self.catalog.check_ready()

    def check_images(self, model: str, count: int, *, deadline: float = math.inf) -> None:
        """See `EngineClient.check_images`."""
        self.models.admission(model).check(count, deadline=deadline)

    @contextmanager
    def admit(self, model: str, count: int, *, deadline: float = math.inf) -> Iterator[CoreLease]:
        """See `EngineClient.admit`."""
        lease = CoreLease(self, self.models.get(model), count, deadline)
        try:
            yield lease
        finally:
            lease.close()

    async def swap(self, model: str, weights: str | None, shadow: ShadowPlan | None = None) -> Status:
        """See `Swaps.swap`."""
        return await self.swaps.swap(model, weights, shadow)

    async def roll_back(self, model: str) -> Status:
        """See `Swaps.roll_back`."""
        return await self.swaps.roll_back(model)

    async def confirm(self, model: str) -> Status:
        """See `Swaps.confirm`."""
        return await self.swaps.confirm(model)

    async def end_swap(self, model: str) -> Status:
        """See `Swaps.end`."""
        return await self.swaps.end(model)

    async def swap_status(self, model: str) -> Status | None:
        """See `Swaps.status`."""
        return self.swaps.status(model)

    async def reload(self) -> None:
        """See `Swaps.reload`."""
        await self.swaps.reload()

    async def drift(self) -> dict[str, Drift]:
        """See `EngineClient.drift`."""
        settings = self._settings
        thresholds: dict[Distribution, float] = {
            "classes": settings.drift_classes,
            "confidence": settings.drift_confidence,
            "in_distribution": settings.drift_in_distribution,
        }
        return {
            model.name: compare(
                model.window.baseline,
                model.window.counts,
                labels=model.card.labels,
                thresholds=thresholds,
                min_images=settings.drift_min_images,
            )
            for model in self.models.serving()
            if model.window
        }

    async def sample(self) -> None:
        """See `EngineClient.sample`."""
        telemetry = self._telemetry
        telemetry.images_in_progress(self.models.images.used)
        found = await self.drift()
        for model in self.models.serving():
            telemetry.window(model.name, model.window.counts if model.window else {})
            comparisons = found[model.name].comparisons if model.name in found else {}
            for name in DISTRIBUTIONS:
                compared = comparisons.get(name)
                values = {"psi": compared.psi, "limit": compared.limit} if compared else {}
                telemetry.drift(model.name, name, **values)

    def record(self, loaded: LoadedModel, prediction: Prediction, source: Source) -> None:
        """Store a prediction for feedback."""
        (first,) = prediction.top_k(1)
        self._recorder.record(
            Stored(
                source.request_id,
                source.position,
                time.time(),
                loaded.name,
                loaded.card.version,
                first.label,
                first.probability,
                image=source.file,
            )
        )

    async def find_prediction(self, request_id: str, index: int) -> Stored | None:
        """See `Store.find`."""
        return await self._recorder.find(request_id, index)

    async def set_label(self, request_id: str, index: int, label: str | None) -> bool:
        """See `Store.set_label`."""
        return await self._recorder.set_label(request_id, index, label)

    @property
    def _recorder(self) -> Recorder:
        assert self._feedback, "the route exists only with feedback"  # noqa: S101
        return self._feedback
