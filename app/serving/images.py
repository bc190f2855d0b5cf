"""From uploaded files to classified images."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from app.engine.api import Lease, Source
from app.serving.decoding import Decoder, Flow
from model import ImageError, Prediction, PreprocessedImage


@dataclass(frozen=True, slots=True)
class Upload:
    """One image file as it was uploaded.

    Attributes:
        filename: None for a raw body.
        data: the bytes of the file.
        error: why there are none; None if there are.
    """

    filename: str | None
    data: bytes
    error: ImageError | None = None


@dataclass(frozen=True, slots=True)
class ClassifiedImage:
    """One classified image with its timings.

    Attributes:
        image: the upload after preprocessing.
        prediction: of the classifier.
        decode: seconds of decoding and preprocessing, the wait for a thread included.
        queued: seconds in the queue of the batcher.
        inference: seconds of its batch in the engine.
    """

    image: PreprocessedImage
    prediction: Prediction
    decode: float
    queued: float
    inference: float


async def classify(
    uploads: Sequence[Upload],
    lease: Lease,
    decoder: Decoder,
    views: int,
    *,
    sources: Sequence[Source] = (),
    maps: bool = False,
) -> list[ClassifiedImage | ImageError]:
    """Decode and classify images, each independent of the others.

    Args:
        uploads: one or more image files.
        lease: holds room for as many images.
        decoder: decodes them.
        views: largest number of views of an image. See `model.preprocess`.
        sources: of the images, if their predictions are stored for feedback.
        maps: whether the predictions need class-activation maps.

    Returns:
        One result for each upload, in order: an error where the image is at fault.

    Raises:
        Exception: see `Lease.classify`. The other images are given up.
    """
    flow = Flow(lease.model.name)

    async def one(upload: Upload, own: Sequence[Source]) -> ClassifiedImage | ImageError:
        if upload.error:
            return upload.error
        began = time.monotonic()
        try:
            image = await decoder.preprocess(upload.data, lease.model.card.input, views, flow)
        except ImageError as error:
            return error
        decode = time.monotonic() - began
        (found,) = await lease.classify([image.pixels], own, maps=maps)
        return ClassifiedImage(image, found.prediction, decode, found.queued, found.inference)

    if len(uploads) == 1:  # the common case, without a task of its own
        return [await one(uploads[0], sources)]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(each, sources[i : i + 1])) for i, each in enumerate(uploads)]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
