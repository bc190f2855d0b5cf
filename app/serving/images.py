"""What goes into the serving layer and what comes out: uploaded files and classified images."""

from dataclasses import dataclass

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
