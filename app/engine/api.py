"""What the routes call. `EngineCore` is in the same process, and `RemoteEngine` speaks to one in another process."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from app.engine.drift import Drift
from app.engine.errors import NotAlive, NotReady, UnknownModel
from app.engine.status import ShadowPlan, Status
from app.feedback.store import Stored
from model import ModelCard, Prediction

ModelState = Literal["loading", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model, as its clients see it.

    Attributes:
        card: of the weights.
        engine: name of the runtime.
        device: readable name of the hardware.
        precision: of the arithmetic.
        preferred_batch: largest number of images in one forward pass.
    """

    card: ModelCard
    engine: str
    device: str
    precision: str
    preferred_batch: int

    @property
    def name(self) -> str:
        """The name on the card."""
        return self.card.name


class Batched(NamedTuple):
    """The prediction for one image, the seconds that it waited in the queue, and the seconds of its batch."""

    prediction: Prediction
    queued: float
    inference: float


class Source(NamedTuple):
    """Where an image comes from, for feedback.

    Attributes:
        request_id: of its request.
        position: of the image in the request.
        file: the uploaded file, if images are stored.
    """

    request_id: str
    position: int
    file: bytes | None = None


@dataclass(slots=True)
class _Entry:
    info: ModelInfo | None = None
    failure: str = ""


class Catalog:
    """The models by name. The first name is the default.

    Args:
        names: of the models that are going to be loaded.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._entries = {name: _Entry() for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, of models that are not loaded too."""
        return tuple(self._entries)

    def __iter__(self) -> Iterator[ModelInfo]:
        """The models that are loaded."""
        return iter([entry.info for entry in self._entries.values() if entry.info])

    def put(self, info: ModelInfo) -> None:
        """Serve a model under its name, in the place of the one that has this name already."""
        self._entries[info.name].info = info

    def fail(self, name: str, reason: str) -> None:
        """Note that a model cannot be loaded or does not work any more."""
        self._entries[name].failure = reason

    def clear(self) -> None:
        """Forget what is loaded, because the engine is started again."""
        self._entries = {name: _Entry() for name in self._entries}

    @property
    def failed(self) -> bool:
        """Whether a model cannot be loaded or does not work any more."""
        return any(entry.failure for entry in self._entries.values())

    def failure(self, name: str) -> str:
        """Why the model with this name may not be used; empty if it has not failed."""
        return self._entries[name].failure

    def resolve(self, name: str | None) -> str:
        """The name, or that of the default model.

        Raises:
            UnknownModel: there is no model with this name.
        """
        if name is None:
            return self.names[0]
        if name not in self._entries:
            raise UnknownModel(f"there is no model {name!r}: choose one of {', '.join(self._entries)}")
        return name

    def get(self, name: str | None = None) -> ModelInfo:
        """The model with this name, or the default.

        Raises:
            UnknownModel: there is no model with this name.
            NotReady: it is not loaded.
            NotAlive: it does not work any more.
        """
        name = self.resolve(name)
        entry = self._entries[name]
        if entry.info is None:
            raise NotReady(entry.failure or f"the model {name} is loading: send the request again in a second")
        if entry.failure:
            raise NotAlive(entry.failure)
        return entry.info

    def state(self, name: str) -> ModelState:
        """Whether the model with this name may be used."""
        entry = self._entries[name]
        if entry.failure:
            return "failed"
        return "ready" if entry.info else "loading"

    def check_alive(self) -> None:
        """Raises:
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        for entry in self._entries.values():
            if entry.failure:
                raise NotAlive(entry.failure)

    def check_ready(self) -> None:
        """Raises:
        NotReady: a model is not loaded.
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        self.check_alive()
        if loading := [name for name, entry in self._entries.items() if entry.info is None]:
            raise NotReady(f"still loading: {', '.join(loading)}")


class Lease(Protocol):
    """Room for the images of one request, and the version of the model that it keeps.

    Attributes:
        model: that classifies the images.
    """

    model: ModelInfo

    async def classify(
        self, images: Sequence[NDArray[np.uint8]], sources: Sequence[Source] = (), *, maps: bool = False
    ) -> list[Batched]:
        """Classify images. An image whose turn comes after the deadline is not run.

        Args:
            images: each in one or more views, uint8[V, S, S, 3].
            sources: of the images. Without them, their predictions are not stored for feedback.
            maps: whether the predictions need class-activation maps.

        Returns:
            One result for each image, in order.

        Raises:
            QueueFull: there is no room for the images after all.
            NotReady: the process of the engine has ended.
            Exception: whatever the classifier raised.
        """
        ...

    async def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        """Explain one class of an image whose prediction has no maps. See `Classifier.grad_cam`.

        Args:
            pixels: the views of the image, uint8[V, S, S, 3].
            index: of the class.

        Raises:
            NotExplainable: neither the network nor the engine can do it.
        """
        ...


class EngineClient(Protocol):
    """The models, from the point of view of the requests. It belongs to the event loop's thread.

    Attributes:
        catalog: what is loaded.
    """

    catalog: Catalog

    async def start(self) -> None:
        """Begin to load the models, or to connect."""
        ...

    async def stop(self) -> None:
        """Release threads and connections. Every request has ended before."""
        ...

    def drain(self) -> None:
        """Give up a swap that is in progress, because the service shuts down."""
        ...

    def check_alive(self) -> None:
        """Raises:
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        ...

    def check_ready(self) -> None:
        """Raises:
        NotReady: a model is not loaded.
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        ...

    def check_images(self, model: str, count: int, *, deadline: float) -> None:
        """Check that `count` more images could be admitted and completed before the deadline.

        Args:
            model: its name.
            count: number of images.
            deadline: of the request, as time.monotonic().

        Raises:
            QueueFull: they could not, as far as is known.
        """
        ...

    def admit(self, model: str, count: int, *, deadline: float) -> AbstractContextManager[Lease]:
        """Hold room for `count` images, from before they are decoded until their response is built.

        Raises:
            QueueFull: see `check_images`.
            NotReady, NotAlive: the model is not loaded or does not work.
        """
        ...

    async def swap(self, model: str, weights: str | None, shadow: ShadowPlan | None = None) -> Status:
        """Serve other weights under the name of a model. See `Swaps.swap`."""
        ...

    async def roll_back(self, model: str) -> Status:
        """Serve the previous version again."""
        ...

    async def confirm(self, model: str) -> Status:
        """Release the previous version."""
        ...

    async def end_swap(self, model: str) -> Status:
        """End the swap of a model that is in progress."""
        ...

    async def swap_status(self, model: str) -> Status | None:
        """The latest swap of a model; None if there was none."""
        ...

    async def reload(self) -> None:
        """Load the folder of every model again, one after the other. Failures are logged."""
        ...

    async def drift(self) -> Mapping[str, Drift]:
        """By name of each loaded model with a window: its last images against the reference."""
        ...

    async def sample(self) -> None:
        """Set the metrics that the engine samples."""
        ...

    async def find_prediction(self, request_id: str, index: int) -> Stored | None:
        """See `Store.find`."""
        ...

    async def set_label(self, request_id: str, index: int, label: str | None) -> bool:
        """See `Store.set_label`."""
        ...
