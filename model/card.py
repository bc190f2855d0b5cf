"""What a bundle says of itself: card.json, plain JSON, strict."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.errors import CardError

FORMAT_VERSION: Final = 4
WEIGHTS_FILE: Final = "model.safetensors"
OPENVINO_FILES: Final = ("openvino.xml", "openvino.bin")
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Channels = tuple[float, float, float]
PositiveChannels = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class _Strict(BaseModel):
    """An unknown or a missing field is an error, never a default; so is "32" for 32."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Architecture(_Strict):
    """Which network, by its name in model/nets/zoo.py, and its builder's arguments."""

    name: str
    arguments: dict[str, bool | int | str]


class InputSpec(_Strict):
    """The test transform and the normalisation.

    Attributes:
        resize: side that the shorter side is resized to, pixels.
        crop: side of the centred square that the network sees, pixels.
        interpolation: the resize filter, antialiased.
        mean: subtracted from RGB of 0..1.
        std: then divided by.
    """

    resize: Annotated[int, Field(ge=1, le=4096)]
    crop: Annotated[int, Field(ge=1, le=4096)]
    interpolation: Literal["bilinear", "bicubic"]
    mean: Channels
    std: PositiveChannels

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) is larger than resize ({self.resize})")
        return self


class Complexity(_Strict):
    """Size of the network: learned numbers, and multiply-adds of one picture."""

    parameters: Annotated[int, Field(ge=1)]
    multiply_adds: Annotated[int, Field(ge=1)]


class Training(_Strict):
    """How the weights came to be.

    Attributes:
        recipe: every field of it, as executed.
        epochs: how many were trained.
        seed: of weights, order and augmentation.
        pictures: how many were learnt from.
        dataset_md5: of each file of the data set; empty for synthetic pictures.
        commit: of the code that began the run.
        device: that it ran on.
        torch: version.
        seconds: wall time of the run.
        init_sha256: of the file of weights that it started from; none if it started from random ones.
    """

    recipe: dict[str, Any]
    epochs: Annotated[int, Field(ge=1)]
    seed: int
    pictures: Annotated[int, Field(ge=1)]
    dataset_md5: dict[str, str]
    commit: str
    device: str
    torch: str
    seconds: Annotated[float, Field(ge=0)]
    init_sha256: Sha256 | None = None


class ReliabilityBin(_Strict):
    """The test pictures whose confidence, the calibrated probability of the likeliest class, is in one bin.

    Attributes:
        confidence: its mean, 0..1.
        accuracy: share whose likeliest class is right, 0..1.
        pictures: how many there are.
    """

    confidence: Share
    accuracy: Share
    pictures: Annotated[int, Field(ge=1)]


class Metrics(_Strict):
    """Measured on the test set, once, after the last epoch.

    Attributes:
        top1: share of test pictures whose first class is right, 0..1.
        nll: mean negative log-likelihood of the calibrated probabilities, nats.
        ece: expected calibration error of the calibrated probabilities, 15 bins of equal width, 0..1.
        ece_uncalibrated: the same at temperature 1.
        confusion: test pictures of true class i whose likeliest class is j, int[C][C].
        reliability: the bins of `ece` that hold any pictures, by ascending confidence.
        auroc: chance that a test picture looks more like the classes than one of another kind does, 0..1, by kind.
        accepted: share accepted of the test pictures ("test") and of each other kind, 0..1.
        pictures: how many were tested.
        measured: how, in a sentence.
    """

    top1: Share
    nll: Annotated[float, Field(ge=0)]
    ece: Share
    ece_uncalibrated: Share
    confusion: Annotated[list[list[Annotated[int, Field(ge=0)]]], Field(min_length=2)]
    reliability: Annotated[list[ReliabilityBin], Field(min_length=1)]
    auroc: dict[str, Share]
    accepted: dict[str, Share]
    pictures: Annotated[int, Field(ge=1)]
    measured: str

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("confusion is not square")
        if sum(map(sum, self.confusion)) != self.pictures:
            raise ValueError("confusion does not hold as many pictures as were tested")
        if abs(sum(row[index] for index, row in enumerate(self.confusion)) / self.pictures - self.top1) > 1e-6:
            raise ValueError("confusion has not top1 on its diagonal")
        if sum(part.pictures for part in self.reliability) != self.pictures:
            raise ValueError("reliability does not hold as many pictures as were tested")
        if any(low.confidence > high.confidence for low, high in pairwise(self.reliability)):
            raise ValueError("the confidence of reliability does not ascend")
        gaps = sum(part.pictures * abs(part.confidence - part.accuracy) for part in self.reliability)
        if abs(gaps / self.pictures - self.ece) > 1e-5:
            raise ValueError("the gaps of reliability are not ece")
        return self


class Calibration(_Strict):
    """What turns logits into probabilities that can be trusted.

    Attributes:
        temperature: by which logits are divided before the softmax.
        pictures: how many held-out pictures it was fitted to, by their likelihood; 0 where none were held out, and
            the temperature is then 1.
    """

    temperature: Annotated[float, Field(gt=0)]
    pictures: Annotated[int, Field(ge=0)]


class OutOfDistribution(_Strict):
    """What tells pictures of the classes from pictures of anything else, by `model.calibration.class_mean_cosine`.

    Attributes:
        method: the score's name.
        feature_mean: mean penultimate feature, float[D].
        class_directions: each class's mean feature less that mean, of length 1, float[C][D]; zeros for a class that
            none of the pictures were of.
        quantiles: scores of pictures of the classes at evenly spaced shares from 0 to 1, ascending.
        threshold: the share at and above which a picture is accepted, 0..1.
        pictures: how many all of these are of; held out, or learnt from where none were.
    """

    method: Literal["class-mean-cosine"]
    feature_mean: Annotated[list[float], Field(min_length=1)]
    class_directions: Annotated[list[list[float]], Field(min_length=2)]
    quantiles: Annotated[list[float], Field(min_length=2)]
    threshold: Share
    pictures: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if any(low > high for low, high in pairwise(self.quantiles)):
            raise ValueError("quantiles do not ascend")
        if any(len(row) != len(self.feature_mean) for row in self.class_directions):
            raise ValueError("class_directions has not as many numbers a class as feature_mean has")
        if any(any(row) and abs(math.hypot(*row) - 1) > 1e-3 for row in self.class_directions):
            raise ValueError("class_directions are not of length 1")
        return self


class SelfTest(_Strict):
    """Synthetic inputs, by the seed that draws them, and what they must give in float32.

    Attributes:
        seed: of `model.classifier.self_test_pixels`.
        logits: float[N][C].
        scores: of `model.calibration.class_mean_cosine`, float[N].
        probabilities: calibrated, float[N][C].
        in_distribution: 0..1, float[N].
        tolerance: largest difference allowed: of logits and scores as a share of the largest expected magnitude,
            of the others as it is.
    """

    seed: Annotated[int, Field(ge=0)]
    logits: Annotated[list[list[float]], Field(min_length=1)]
    scores: list[float]
    probabilities: list[list[float]]
    in_distribution: list[float]
    tolerance: Annotated[float, Field(gt=0, lt=1)]


class OpenVino(_Strict):
    """The same network as an OpenVINO model, in `OPENVINO_FILES`, made by `python -m model.quantize`.

    Attributes:
        weights: "int8", quantised after training, or "float16".
        pictures: held-out ones that were looked at for the ranges of int8 activations; 0 for float16.
        top1: share of the test pictures of `metrics` whose first class is right, 0..1.
        agreement: share of them whose first class is the one that the float32 network gives, 0..1.
        self_test: as the card's own, but with what this model gives.
    """

    weights: Literal["int8", "float16"]
    pictures: Annotated[int, Field(ge=0)]
    top1: Share
    agreement: Share
    self_test: SelfTest


class ModelCard(_Strict):
    """All of card.json."""

    format_version: Literal[4]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    architecture: Architecture
    labels: Annotated[list[str], Field(min_length=2)]
    input: InputSpec
    complexity: Complexity
    training: Training
    metrics: Metrics
    calibration: Calibration
    out_of_distribution: OutOfDistribution
    files: dict[str, Sha256]
    self_test: SelfTest
    openvino: OpenVino | None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels are not unique")
        if self.architecture.arguments.get("num_classes") != len(self.labels):
            raise ValueError("architecture.arguments.num_classes is not the number of labels")
        if len(self.metrics.confusion) != len(self.labels):
            raise ValueError("metrics.confusion has not one row for each label")
        tests = {"self_test": self.self_test}
        if self.openvino:
            tests["openvino.self_test"] = self.openvino.self_test
        for name, test in tests.items():
            if any(len(row) != len(self.labels) for row in (*test.logits, *test.probabilities)):
                raise ValueError(f"{name}.logits or probabilities has not one number for each label")
            if not len(test.logits) == len(test.probabilities) == len(test.scores) == len(test.in_distribution):
                raise ValueError(f"{name} has not as many rows of each kind")
        if len(self.out_of_distribution.class_directions) != len(self.labels):
            raise ValueError("out_of_distribution.class_directions has not one row for each label")
        for name in (WEIGHTS_FILE, *(OPENVINO_FILES if self.openvino else ())):
            if name not in self.files:
                raise ValueError(f"files lacks {name}")
        return self

    @property
    def version(self) -> str:
        """First 12 hex digits of the weights' SHA-256."""
        return self.files[WEIGHTS_FILE][:12]

    def self_test_on(self, engine: str) -> SelfTest:
        """What the engine of that name must give."""
        return self.openvino.self_test if self.openvino and engine == "openvino" else self.self_test


def read_card(path: Path) -> ModelCard:
    """Read and check card.json.

    Raises:
        CardError: it is missing, or a field is unknown, missing or malformed; the message names the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path} cannot be read: name a weights folder that holds a card.json") from error
    try:
        return ModelCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the card"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise CardError(f"{path}: {where}: {first['msg']}{more}; export the bundle again") from error
