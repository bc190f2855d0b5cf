"""The models of the process: name -> LoadedModel, each with its own queue."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.serving.batching import Batched, Batcher
from app.serving.decoding import Decoder, Flow
from app.serving.images import ClassifiedImage, Upload
from model import Classifier, ImageError, ModelCard


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A classifier with its queue. It never changes, so a request keeps the one that it began with.

    The calling route holds room for the images: see `Admission.images`.

    Attributes:
        classifier: loaded and self-tested.
        batcher: owns its queue.
        decoder: shared by all models.
    """

    classifier: Classifier
    batcher: Batcher
    decoder: Decoder

    @property
    def card(self) -> ModelCard:
        """The card of the weights."""
        return self.classifier.card

    async def classify(
        self, uploads: Sequence[Upload], views: int, *, deadline: float = math.inf
    ) -> list[ClassifiedImage | ImageError]:
        """Decode and classify images, each independent of the others.

        Args:
            uploads: one or more image files.
            views: of large, oblong images. See `model.preprocess`.
            deadline: as time.monotonic(). An image is not run if its turn comes later.

        Returns:
            One result for each upload, in order: an error where the image is at fault.

        Raises:
            NotAlive: the engine does not work.
            Exception: whatever the classifier raised for one of them. The others leave the queue.
        """
        flow = Flow()
        if len(uploads) == 1:  # the common case, without a task of its own
            return [await self._classify(uploads[0].data, views, deadline, flow)]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._classify(upload.data, views, deadline, flow)) for upload in uploads]
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

    async def _classify(self, data: bytes, views: int, deadline: float, flow: Flow) -> ClassifiedImage | ImageError:
        began = time.monotonic()
        try:
            image = await self.decoder.preprocess(data, self.card.input, views, flow)
        except ImageError as error:
            return error
        decode = time.monotonic() - began
        batched = await self.batcher.classify(image.pixels, admitted=began, deadline=deadline)
        return ClassifiedImage(image, batched.prediction, decode, batched.queued, batched.inference)


class Registry:
    """The models of the process by name. The first one added is the default."""

    def __init__(self) -> None:
        self._models: dict[str, LoadedModel] = {}

    def add(self, model: LoadedModel) -> None:
        """Serve a model under the name of its card, in the place of one that has this name already."""
        self._models[model.card.name] = model

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(self._models.values())

    @property
    def default(self) -> LoadedModel | None:
        """The model for requests that name none; None while no model is loaded."""
        return next(iter(self), None)
