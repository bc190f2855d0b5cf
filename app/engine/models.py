"""The loaded models of the process that owns the engines."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from app.engine.admission import Admission, SharedLimit
from app.engine.api import Catalog, ModelInfo
from app.engine.batching import Batcher
from app.engine.drift import Baseline, Window
from app.engine.errors import NotAlive, NotReady
from app.engine.threads import compute_threads
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import BundleError, Classifier, ModelCard, ModelError

logger = logging.getLogger("tenfold")

# Seconds between two checks of the engines.
_CHECK_INTERVAL = 0.5

State = Literal["loading", "ready", "failed"]

Load = Callable[[], Classifier]
"""Returns the classifier of a model, loaded and self-tested. Called in the thread of its engine."""


class LoadedModel:
    """One version of a model, with its queue.

    Attributes:
        info: what its clients see.
        batcher: owns its queue and its engine.
        admission: of all versions of the model.
        window: the last predictions, for the comparison with held-out images; None if there is none.
        users: requests in progress, and processes that may still send requests for it.
        retired: whether it is released when it has no users.
    """

    def __init__(self, info: ModelInfo, batcher: Batcher, admission: Admission, window: Window | None) -> None:
        self.info = info
        self.batcher = batcher
        self.admission = admission
        self.window = window
        self.users = 0
        self.retired = False
        if window:
            batcher.observers.append(lambda _, prediction: window.add(prediction))

    @property
    def card(self) -> ModelCard:
        """The card of the weights."""
        return self.info.card

    @property
    def name(self) -> str:
        """The name on the card."""
        return self.info.card.name

    @property
    def released(self) -> bool:
        """Whether it can classify nothing any more."""
        return self.retired and not self.users

    def use(self) -> None:
        """Keep it loaded until `leave`."""
        self.users += 1

    def leave(self) -> None:
        """Release it if it is retired and this was its last user."""
        self.users -= 1
        self._release_if_unused()

    def retire(self) -> None:
        """Release it when its last user leaves."""
        self.retired = True
        self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self.released:
            self.batcher.stop()


class Models:
    """Loads the models, watches their engines, and keeps the versions that requests use.

    It belongs to the event loop's thread.

    Args:
        settings: limits and sizes.
        load: name to load functions, one for each lane, in order. The first model is the default.
        telemetry: the metrics.
        on_failure: called when a model cannot be loaded or an engine stops working. Only a new process helps then.

    Attributes:
        catalog: what is served.
        images: the images in progress.
        state: of all models together.
        on_change: called when the catalog has changed.
    """

    def __init__(
        self,
        settings: Settings,
        load: Mapping[str, Sequence[Load]],
        telemetry: Telemetry,
        on_failure: Callable[[], None],
    ) -> None:
        self.catalog = Catalog(load)
        self.images = SharedLimit(settings.queue_size, load)
        self.state: State = "loading"
        self.on_change: Callable[[], None] = lambda: None
        self._settings = settings
        self._load = dict(load)
        self._telemetry = telemetry
        self._on_failure = on_failure
        self._admission = {name: Admission(name, self.images) for name in load}
        self._serving: dict[str, LoadedModel] = {}
        self._loaded: set[LoadedModel] = set()
        self._loading = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to load the models, and to watch their engines."""
        self._tasks = [
            asyncio.create_task(self._load_all(), name="load"),
            asyncio.create_task(self._watch(), name="watch"),
        ]

    async def stop(self) -> None:
        """Release the threads. Every request has ended before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for model in self._loaded:
            model.batcher.stop()

    async def wait_loaded(self) -> None:
        """Wait until the models of the start are loaded, or one cannot be loaded."""
        await asyncio.wait(self._tasks[:1])

    def get(self, name: str) -> LoadedModel:
        """The model that is served under a name.

        Raises:
            NotReady: it is not loaded.
            NotAlive: it does not work any more.
        """
        self.catalog.get(name)
        return self._serving[name]

    def version(self, name: str, version: str) -> LoadedModel | None:
        """A version of a model that is loaded; None if it is not."""
        found = (each for each in self._loaded if (each.name, each.card.version) == (name, version))
        return next((each for each in found if not each.released), None)

    def serving(self) -> list[LoadedModel]:
        """The models that are served."""
        return list(self._serving.values())

    def admission(self, name: str) -> Admission:
        """Counts the images in progress of a model, whether it is loaded or not."""
        return self._admission[name]

    def check_alive(self) -> None:
        """Raises:
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        self.catalog.check_alive()
        for model in self._serving.values():
            try:
                model.batcher.check()
            except NotAlive as error:
                reason = f"the engine of {model.name} does not work any more: {error}"
                logger.critical("%s", reason)
                self._fail(model.name, reason)
                raise NotAlive(reason) from error

    def check_running(self) -> None:
        """Raises:
        NotReady: a model is loading.
        NotAlive: the service does not work any more.
        """
        if self.state == "failed":
            raise NotAlive("the service does not work any more: restart it")
        if self.state == "loading":
            raise NotReady("the service is loading: send the request again when /readyz returns 200")

    async def load(self, name: str, lanes: Sequence[Load]) -> LoadedModel:
        """Load a model, and start the threads of its engines and its queue. It gets no requests yet.

        Args:
            name: that its card must have.
            lanes: each is called in the thread of its engine.

        Raises:
            BundleError: the card has another name.
            Exception: whatever one of `lanes` raised.
        """
        threads = [compute_threads(1, f"engine-{name}") for _ in lanes]
        loop = asyncio.get_running_loop()
        try:
            async with self._loading:
                classifiers = [
                    await _finished(loop.run_in_executor(thread, load))
                    for thread, load in zip(threads, lanes, strict=True)
                ]
            classifier = classifiers[0]
            card, engine = classifier.card, classifier.engine
            if card.name != name:
                raise BundleError(f"the name on the card is {card.name}, not {name}: change it, or restart the service")
        except BaseException:
            for thread in threads:
                thread.shutdown(wait=False, cancel_futures=True)
            raise
        admission = self._admission[name]
        admission.first_rate = classifier.images_per_second or admission.first_rate
        batcher = Batcher(
            list(zip(classifiers, threads, strict=True)),
            max_batch=self._settings.max_batch or engine.preferred_batch,
            stall_timeout=self._settings.stall_timeout,
            admission=admission,
            telemetry=self._telemetry,
        )
        size = self._settings.drift_window
        window = Window(Baseline(card.reference, size), size) if card.reference and size else None
        info = ModelInfo(card, engine.name, engine.device, engine.precision, engine.preferred_batch)
        model = LoadedModel(info, batcher, admission, window)
        self._loaded.add(model)
        return model

    def serve(self, model: LoadedModel) -> None:
        """Serve a model under its name. Requests keep the one that they began with."""
        if before := self._serving.get(model.name):
            self._telemetry.model_gone(**_labels(before.info))
        self._serving[model.name] = model
        self.catalog.put(model.info)
        info = model.info
        logger.info("serving %s on %s (%s, %s)", info.name, info.engine, info.device, info.precision)
        self._telemetry.model(**_labels(info))
        self.on_change()

    def retire(self, model: LoadedModel) -> None:
        """Release a model that is not served any more, once its requests have ended."""
        model.retire()
        self._loaded = {each for each in self._loaded if not each.released}

    async def _load_all(self) -> None:
        """Load one model after the other, because each uses all CPUs to load, and serve it."""
        for name, load in self._load.items():
            try:
                model = await self.load(name, load)
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
            self.state = "ready"
            self.on_change()

    async def _watch(self) -> None:
        """Check the engines until one does not work any more."""
        with suppress(NotAlive):
            while True:
                await asyncio.sleep(_CHECK_INTERVAL)
                self.check_alive()

    def _fail(self, name: str, reason: str) -> None:
        self.catalog.fail(name, reason)
        self.state = "failed"
        self.on_change()
        self._on_failure()


async def _finished(loading: asyncio.Future[Classifier]) -> Classifier:
    """The result of a thread. A cancelled call ends after the thread, so that no other model is loaded meanwhile."""
    try:
        return await asyncio.shield(loading)
    except asyncio.CancelledError:
        await asyncio.wait([loading])
        raise


def _labels(info: ModelInfo) -> dict[str, str]:
    """What the metrics say of a model."""
    return {
        "model": info.name,
        "version": info.card.version,
        "engine": info.engine,
        "device": info.device,
        "precision": info.precision,
    }
