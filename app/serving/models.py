"""The models of the process: name -> LoadedModel, each with its own queue."""

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from app.serving.admission import Admission
from app.serving.batching import Batched, Batcher
from app.serving.decoding import Decoder, Flow
from app.serving.drift import Window
from app.serving.errors import NotAlive, NotReady, UnknownModel
from app.serving.images import ClassifiedImage, Upload
from model import Classifier, ImageError, ModelCard

ModelState = Literal["loading", "ready", "failed"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class LoadedModel:
    """A classifier with its queue. It never changes, so a request keeps the one that it began with.

    Its thread and its memory are released when nothing refers to it any more.

    The calling route holds room for the images: `model.admission.images`.

    Attributes:
        classifier: loaded and self-tested.
        batcher: owns its queue and its engine's thread.
        admission: of all models with this name.
        decoder: shared by all models.
        window: the last predictions, for the comparison with held-out images; None if there is none. The only part
            that changes.
    """

    classifier: Classifier
    batcher: Batcher
    admission: Admission
    decoder: Decoder
    window: Window | None

    @property
    def card(self) -> ModelCard:
        """The card of the weights."""
        return self.classifier.card

    @property
    def name(self) -> str:
        """The name on the card."""
        return self.classifier.card.name

    def check_alive(self) -> None:
        """Raises:
        NotAlive: the engine does not work.
        """
        try:
            self.batcher.check()
        except NotAlive as error:
            raise NotAlive(f"the engine of {self.name} does not work any more: {error}") from error

    async def classify(
        self, uploads: Sequence[Upload], views: int, *, deadline: float = math.inf
    ) -> list[ClassifiedImage | ImageError]:
        """Decode and classify images, each independent of the others.

        Args:
            uploads: one or more image files.
            views: largest number of views of an image. See `model.preprocess`.
            deadline: as time.monotonic(). An image is not run if its turn comes later.

        Returns:
            One result for each upload, in order: an error where the image is at fault.

        Raises:
            NotAlive: the engine does not work.
            Exception: whatever the classifier raised for one of them. The others leave the queue.
        """
        flow = Flow(self.name)
        if len(uploads) == 1:  # the common case, without a task of its own
            return [await self._classify(uploads[0], views, deadline, flow)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._classify(upload, views, deadline, flow)) for upload in uploads]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def classify_pixels(self, pixels: NDArray[np.uint8], *, deadline: float = math.inf) -> list[Batched]:
        """Classify images that are preprocessed already, each one view.

        Args:
            pixels: uint8[N, S, S, 3], N >= 1, with S the card's `input.crop`.
            deadline: as for `classify`.

        Returns:
            N predictions with their timings, in order.

        Raises:
            ValueError: the pixels have another shape or type.
            Exception: whatever the classifier raised.
        """
        side = self.card.input.crop
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or not len(pixels) or pixels.shape[1:] != (side, side, 3):
            raise ValueError(f"pixels are {pixels.dtype}{list(pixels.shape)}: send uint8[N, {side}, {side}, 3], N >= 1")
        admitted = time.monotonic()
        return await asyncio.gather(
            *(self.batcher.classify(image[None], admitted=admitted, deadline=deadline) for image in pixels)
        )

    async def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        """Explain one class of an image whose prediction has no maps, see `Classifier.grad_cam`.

        Args:
            pixels: the views of the image, uint8[V, S, S, 3].
            index: of the class.

        Raises:
            NotExplainable: neither the network nor the engine can do it.
        """
        return await self.batcher.in_engine_thread(lambda: self.classifier.grad_cam(pixels, index))

    async def _classify(self, upload: Upload, views: int, deadline: float, flow: Flow) -> ClassifiedImage | ImageError:
        if upload.error:
            return upload.error
        began = time.monotonic()
        try:
            image = await self.decoder.preprocess(upload.data, self.card.input, views, flow)
        except ImageError as error:
            return error
        decode = time.monotonic() - began
        batched = await self.batcher.classify(image.pixels, admitted=began, deadline=deadline)
        return ClassifiedImage(image, batched.prediction, decode, batched.queued, batched.inference)


class Registry:
    """The models of the process by name. The first name is the default.

    Args:
        names: of the models that are going to be loaded.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._models: dict[str, LoadedModel | None] = dict.fromkeys(names)
        self._failures: dict[str, str] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All names, of models that are not loaded too."""
        return tuple(self._models)

    def __iter__(self) -> Iterator[LoadedModel]:
        """The models that are loaded."""
        return iter([model for model in self._models.values() if model])

    def put(self, model: LoadedModel) -> None:
        """Serve a model under its name, in the place of the one that has this name already."""
        self._models[model.name] = model

    def fail(self, name: str, reason: str) -> None:
        """Note that a model cannot be loaded or does not work any more."""
        self._failures[name] = reason

    def resolve(self, name: str | None) -> str:
        """The name, or that of the default model.

        Raises:
            UnknownModel: there is no model with this name.
        """
        if name is None:
            return self.names[0]
        if name not in self._models:
            raise UnknownModel(f"there is no model {name!r}: choose one of {', '.join(self._models)}")
        return name

    def get(self, name: str | None = None) -> LoadedModel:
        """The model with this name, or the default.

        Raises:
            UnknownModel: there is no model with this name.
            NotReady: it is not loaded.
            NotAlive: its engine does not work any more.
        """
        name = self.resolve(name)
        model = self._models[name]
        failure = self._failures.get(name)
        if model is None:
            raise NotReady(failure or f"the model {name} is loading: send the request again in a second")
        if failure:
            raise NotAlive(failure)
        return model

    def state(self, name: str) -> ModelState:
        """Whether the model with this name may be used."""
        if name in self._failures:
            return "failed"
        return "ready" if self._models[name] else "loading"

    def check_alive(self) -> None:
        """Raises:
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        for failure in self._failures.values():
            raise NotAlive(failure)
        for model in self:
            model.check_alive()

    def check_ready(self) -> None:
        """Raises:
        NotReady: a model is not loaded.
        NotAlive: a model cannot be loaded, or its engine does not work.
        """
        self.check_alive()
        if loading := [name for name, model in self._models.items() if model is None]:
            raise NotReady(f"still loading: {', '.join(loading)}")
