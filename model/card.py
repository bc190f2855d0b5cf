"""card.json: the description of a bundle, as strict plain JSON."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sized
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import from_json

from model.errors import CardError

FORMAT_VERSION: Final = 5
CONVERTIBLE_FORMATS: Final = (4,)
"""Earlier formats that `python -m model.upgrade` converts."""

REVISION: Final = 2
"""Of the code that turns a file into views and the outputs of a network into a prediction. It is part of every version.

Raise it when the same file and weights can give another prediction than before: after a change of the decoding, the
test transform, the views or their weights (model/decode.py, tiff.py, large.py, image.py, views.py), or of the
probabilities and the out-of-distribution score (model/calibration.py, classifier.py). tests/model/test_revision.py
notices most such changes.
"""

WEIGHTS_FILE: Final = "model.safetensors"
OPENVINO_FILES: Final = ("openvino.xml", "openvino.bin")
ONNX_FILE: Final = "model.onnx"
MAX_CARD_BYTES: Final = 8_000_000
"""Size of a card. The class means of a thousand classes with 512 features take 5.3 MB."""
# Fields, objects and lists of a card, roughly: an error repeats what is wrong with its parts.
_MAX_PARTS = 20_000
MAX_SIDE: Final = 4096
"""Largest side of an image that is the input of a network, pixels."""
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

# Fields of the card that determine predictions.
_DECISIVE = {"architecture", "labels", "input", "calibration", "out_of_distribution", "files"}

T = TypeVar("T")
# The first invalid item is an error of the list. A report of a million of them would take gigabytes.
List = Annotated[list[T], FailFast()]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
# Many readers of OpenAPI know arrays with `items` only, which pydantic does not write for a tuple.
_THREE = {"type": "array", "minItems": 3, "maxItems": 3}
Channels = Annotated[tuple[float, float, float], WithJsonSchema({**_THREE, "items": {"type": "number"}})]
PositiveChannels = Annotated[
    tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]],
    WithJsonSchema({**_THREE, "items": {"type": "number", "exclusiveMinimum": 0}}),
]


class _Strict(BaseModel):
    """Unknown fields, missing fields and values of another type are errors: "32" is not 32."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Architecture(_Strict):
    """The network.

    Attributes:
        name: in model/nets/zoo.py.
        arguments: keyword arguments of its builder; `num_classes` is one of them.
    """

    name: str
    arguments: dict[str, bool | int | float | str | None]


class InputSpec(_Strict):
    """The test transform and the normalisation.

    Attributes:
        resize: length that the shorter side is resized to, pixels.
        crop: side of the central square that is the input of the network, pixels.
        interpolation: resize filter, with antialiasing.
        mean: of each channel, subtracted from RGB values in 0..1.
        std: of each channel, divides the difference.
    """

    resize: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    crop: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    interpolation: Literal["bilinear", "bicubic"]
    mean: Channels
    std: PositiveChannels

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop ({self.crop}) is larger than resize ({self.resize})")
        return self


class Complexity(_Strict):
    """Size of the network.

    Attributes:
        parameters: number of trained values.
        multiply_adds: of one forward pass over one view; convolutions and linear layers only.
    """

    parameters: Annotated[int, Field(ge=1)]
    multiply_adds: Annotated[int, Field(ge=1)]


class OutlierImages(_Strict):
    """Images of none of the classes that were used in training (outlier exposure).

    Attributes:
        images: number of images that were read from a folder.
        generated: number of images that a program generated.
        without: names of the folders that were not used.
        unreadable: number of files that were skipped because they are not images.
        sha256: of the pixels of all images, uint8[N, S, S, 3], those of the folder in the order of their paths.
    """

    images: Annotated[int, Field(ge=0)]
    generated: Annotated[int, Field(ge=0)]
    without: List[str]
    unreadable: Annotated[int, Field(ge=0)]
    sha256: Sha256


class AveragedWeights(_Strict):
    """The weights that the trained ones were averaged with.

    Attributes:
        sha256: of their file.
        share: of them in the mean, 0..1.
    """

    sha256: Sha256
    share: Share


class TeacherBundle(_Strict):
    """The bundle whose logits a network learned from (distillation).

    Attributes:
        name: of the bundle.
        sha256: of its weights file.
        engine: name of the engine that it ran in.
        precision: of that engine's arithmetic.
    """

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    sha256: Sha256
    engine: str
    precision: str


class AddedFolder(_Strict):
    """A folder of images that was added to a data set.

    Attributes:
        name: of the folder, for people.
        sha256: of the contents of all its images and their parts and classes.
        train: number of its training images.
        holdout: number of its held-out images.
        test: number of its test images.
        repeated: number of images that were left out because the data set has them already.
    """

    name: str
    sha256: Sha256
    train: Annotated[int, Field(ge=0)]
    holdout: Annotated[int, Field(ge=0)]
    test: Annotated[int, Field(ge=0)]
    repeated: Annotated[int, Field(ge=0)]


class TrainingData(_Strict):
    """The images that a network was trained and tested on.

    Attributes:
        name: of the data set, for people; without the folders that were added to it.
        sha256: of the contents of all images of a folder and their parts and classes; None for other data sets.
        train: number of training images of each class, int[C].
        holdout: number of held-out images of each class, int[C].
        test: number of test images of each class, int[C].
        added: folders whose images were added. The numbers of images above include them.
    """

    name: str
    sha256: Sha256 | None
    train: List[Annotated[int, Field(ge=0)]]
    holdout: List[Annotated[int, Field(ge=0)]]
    test: List[Annotated[int, Field(ge=0)]]
    added: List[AddedFolder] = []


class Training(_Strict):
    """How the weights were trained.

    Attributes:
        recipe: all its fields, as executed.
        epochs: number of epochs.
        seed: of the weights, the order and the augmentation.
        pictures: number of training images.
        dataset_md5: MD5 of each file of CIFAR-10; empty for other data sets.
        data: the data set; None in a card of earlier code.
        commit: of the code that started the run.
        device: name of the hardware.
        torch: version of PyTorch.
        seconds: wall time of the run.
        init_sha256: SHA-256 of the file with the initial weights; None if they were random.
        outliers: images of none of the classes; None if there were none.
        teacher: of the distillation; None if there was none.
        average: what the trained weights were averaged with; None if they were not.
        class_biases: what was added to the biases of the last layer after the training, which minimises the loss on
            the held-out images, one number for each class; None if nothing was.
    """

    recipe: dict[str, Any]
    epochs: Annotated[int, Field(ge=1)]
    seed: int
    pictures: Annotated[int, Field(ge=1)]
    dataset_md5: dict[str, str]
    data: TrainingData | None = None
    commit: str
    device: str
    torch: str
    seconds: Annotated[float, Field(ge=0)]
    init_sha256: Sha256 | None = None
    outliers: OutlierImages | None = None
    teacher: TeacherBundle | None = None
    average: AveragedWeights | None = None
    class_biases: Annotated[list[float] | None, FailFast()] = None


class ReliabilityBin(_Strict):
    """The test images in one bin of confidence, which is the calibrated probability of the most probable class.

    Attributes:
        confidence: mean confidence, 0..1.
        accuracy: fraction of images whose most probable class is right, 0..1.
        pictures: number of images.
    """

    confidence: Share
    accuracy: Share
    pictures: Annotated[int, Field(ge=1)]


class Mistake(_Strict):
    """A wrongly classified test image.

    Attributes:
        image: index in the test set, from 0.
        file: path of the image in its folder; None if it has no file of its own.
        label: the right class.
        predicted: the most probable class.
        probability: calibrated probability of that class, 0..1.
    """

    image: Annotated[int, Field(ge=0)]
    file: str | None = None
    label: str
    predicted: str
    probability: Share


class PhotoMetrics(_Strict):
    """Measured on photos from other sources than the training data.

    Attributes:
        images: number of photos of the classes.
        top1: fraction of them whose most probable class is right, 0..1.
        accepted: fraction of them with the verdict "accepted", 0..1.
        others: number of photos of other things.
        others_accepted: fraction of those with the verdict "accepted", 0..1.
        views: largest number of views of an image.
    """

    images: Annotated[int, Field(ge=1)]
    top1: Share
    accepted: Share
    others: Annotated[int, Field(ge=1)]
    others_accepted: Share
    views: Annotated[int, Field(ge=1)]


class Metrics(_Strict):
    """Measured on the test set, once, at the end.

    Attributes:
        top1: fraction of images whose most probable class is right, 0..1.
        nll: mean negative log-likelihood of the calibrated probabilities, nats.
        ece: expected calibration error of the calibrated probabilities, 15 bins of equal width, 0..1.
        ece_uncalibrated: the same at temperature 1.
        confusion: number of images of class i whose most probable class is j, int[C][C].
        reliability: the bins of `ece` that contain images, by ascending confidence.
        mistakes: the wrongly classified images with the highest confidence, by descending confidence.
        auroc: area under the ROC curve of the out-of-distribution score, test images against each other kind, 0..1.
        accepted: fraction of the test images ("test") and of each other kind of images with the verdict "accepted",
            0..1.
        other: the same with the verdict "other"; empty if it was not measured.
        pictures: number of test images.
        measured: conditions of the measurement, for people.
        photos: on photos from other sources; None if it was not measured.
    """

    top1: Share
    nll: Annotated[float, Field(ge=0)]
    ece: Share
    ece_uncalibrated: Share
    confusion: Annotated[List[List[Annotated[int, Field(ge=0)]]], Field(min_length=2)]
    reliability: Annotated[List[ReliabilityBin], Field(min_length=1)]
    mistakes: List[Mistake]
    auroc: dict[str, Share]
    accepted: dict[str, Share]
    other: dict[str, Share]
    pictures: Annotated[int, Field(ge=1)]
    measured: str
    photos: PhotoMetrics | None = None

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if any(len(row) != len(self.confusion) for row in self.confusion):
            raise ValueError("confusion is not square")
        if sum(map(sum, self.confusion)) != self.pictures:
            raise ValueError("the sum of confusion is not the number of pictures")
        if abs(sum(row[index] for index, row in enumerate(self.confusion)) / self.pictures - self.top1) > 1e-6:
            raise ValueError("the diagonal of confusion does not agree with top1")
        if sum(part.pictures for part in self.reliability) != self.pictures:
            raise ValueError("the bins of reliability do not add up to the number of pictures")
        if any(low.confidence > high.confidence for low, high in pairwise(self.reliability)):
            raise ValueError("the confidence of reliability is not ascending")
        gaps = sum(part.pictures * abs(part.confidence - part.accuracy) for part in self.reliability)
        if abs(gaps / self.pictures - self.ece) > 1e-5:
            raise ValueError("reliability does not agree with ece")
        return self


class Calibration(_Strict):
    """From logits to probabilities, `model.calibration.scaled_logits`.

    Attributes:
        temperature: divides the logits of each view. The probabilities of an image are the softmax of their weighted
            mean over its views.
        exponent: the temperature of a view is multiplied by its spread to the power of this. The spread is the largest
            logit less the mean of the logits, but at least 1. 0 for temperature scaling.
        views: number of views per image in the fit. The temperature is applied unchanged to images with another
            number of views, for which the probabilities are not exactly calibrated.
        pictures: number of held-out images in the fit; 0 if none were held out, and the temperature is then 1.
    """

    temperature: Annotated[float, Field(gt=0)]
    exponent: Annotated[float, Field(ge=-1, le=1)] = 0.0
    views: Annotated[int, Field(ge=1)]
    pictures: Annotated[int, Field(ge=0)]


class Energy(_Strict):
    """The score is the negative energy (Liu et al. 2020, arXiv:2010.03759), `model.calibration.energy`."""

    method: Literal["energy"]


class _ClassMeans(_Strict):
    feature_mean: Annotated[List[float], Field(min_length=1)]
    class_directions: Annotated[List[List[float]], Field(min_length=2)]

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if any(len(row) != len(self.feature_mean) for row in self.class_directions):
            raise ValueError("the rows of class_directions are not as long as feature_mean")
        if any(any(row) and abs(math.hypot(*row) - 1) > 1e-3 for row in self.class_directions):
            raise ValueError("a row of class_directions does not have length 1")
        return self


class ClassMeanCosine(_ClassMeans):
    """The score is the largest cosine between the features and a class mean, both centred on the mean of the means.

    Attributes:
        feature_mean: mean over the classes of their mean features, float[D].
        class_directions: mean features of each class minus `feature_mean`, scaled to length 1, float[C][D]; zeros for
            a class without images.
    """

    method: Literal["class-mean-cosine"]


class Mixture(_ClassMeans):
    """The score is the weighted sum of the energy and the class-mean cosine.

    Attributes:
        feature_mean: as in `ClassMeanCosine`.
        class_directions: as in `ClassMeanCosine`.
        energy_weight: factor of the energy.
        cosine_weight: factor of the cosine.
    """

    method: Literal["mixture"]
    energy_weight: Annotated[float, Field(gt=0)]
    cosine_weight: Annotated[float, Field(gt=0)]


Score = Annotated[Energy | ClassMeanCosine | Mixture, Field(discriminator="method")]
"""An out-of-distribution score with its constants, see `model.calibration.OutOfDistributionScore`."""


class Thresholds(_Strict):
    """Limits between the verdicts, as the fraction of held-out images that do not score higher, 0..1.

    Attributes:
        accepted: an image at or above it may be accepted.
        uncertain: an image below it is of none of the classes.
    """

    accepted: Share
    uncertain: Share

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.uncertain > self.accepted:
            raise ValueError(f"uncertain ({self.uncertain}) is above accepted ({self.accepted})")
        return self


class OutOfDistribution(_Strict):
    """Constants that separate images of the classes from other images.

    The score of an image is the weighted mean over its views.

    Attributes:
        score: which score, and its constants.
        quantiles: of the scores of held-out images, evenly spaced from the minimum to the maximum, ascending.
        least_contrast: the lowest contrast of a held-out image, see `model.calibration.pixel_statistics`.
        least_coarseness: the lowest coarseness of a held-out image. `in_distribution` is 0 for an image without a view
            that reaches both.
        thresholds: between the verdicts "accepted", "uncertain" and "other".
        views: number of views per image in the fit. The constants are applied unchanged to images with another number
            of views, for which the accepted fraction differs.
        pictures: number of images in the fit: the held-out images, or training images if none were held out.
    """

    score: Score
    quantiles: Annotated[List[float], Field(min_length=2)]
    least_contrast: Annotated[float, Field(ge=0, le=255)]
    least_coarseness: Share
    thresholds: Thresholds
    views: Annotated[int, Field(ge=1)]
    pictures: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if any(low > high for low, high in pairwise(self.quantiles)):
            raise ValueError("quantiles are not ascending")
        return self


class Histogram(_Strict):
    """The values of held-out images, counted in bins.

    Attributes:
        edges: limits between the bins, ascending, float[B - 1]. A value that equals a limit is in the bin above it.
        pictures: number of images in each bin, int[B].
    """

    edges: List[float]
    pictures: Annotated[List[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        if len(self.pictures) != len(self.edges) + 1:
            raise ValueError("pictures does not have one bin more than edges")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError("edges are not ascending")
        return self


class Reference(_Strict):
    """The distributions of the predictions for held-out images. A service compares its images with them (drift).

    Attributes:
        classes: number of images by most probable class, int[C].
        confidence: calibrated probabilities of the most probable class.
        in_distribution: fractions of held-out images that do not score higher.
        views: number of views per image.
        pictures: number of held-out images.
    """

    classes: Annotated[List[Annotated[int, Field(ge=0)]], Field(min_length=2)]
    confidence: Histogram
    in_distribution: Histogram
    views: Annotated[int, Field(ge=1)]
    pictures: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        for counts in (self.classes, self.confidence.pictures, self.in_distribution.pictures):
            if sum(counts) != self.pictures:
                raise ValueError("the numbers of a distribution do not add up to the number of pictures")
        return self


class SelfTest(_Strict):
    """Expected outputs for N synthetic images, one view each.

    Attributes:
        seed: of the images, see `model.classifier.self_test_pixels`.
        logits: float[N][C].
        scores: of `model.calibration.OutOfDistributionScore`, float[N].
        probabilities: calibrated, float[N][C].
        in_distribution: 0..1, float[N].
        tolerance: largest allowed difference. For logits it is relative to the largest expected magnitude, for scores
            to the range of the quantiles or, if larger, a tenth of the largest expected magnitude. For the others it
            is absolute.
    """

    seed: Annotated[int, Field(ge=0)]
    logits: Annotated[List[List[float]], Field(min_length=1)]
    scores: List[float]
    probabilities: List[List[float]]
    in_distribution: List[float]
    tolerance: Annotated[float, Field(gt=0, lt=1)]


class OpenVino(_Strict):
    """The same network as an OpenVINO model, in `OPENVINO_FILES`, written by `python -m model.quantize`.

    Attributes:
        weights: "int8", quantised after training, or "float16".
        pictures: number of held-out images that determined the ranges of int8 activations; 0 for float16.
        top1: fraction of the test images whose most probable class is right, 0..1.
        agreement: fraction of the test images with the same most probable class as in float32, 0..1.
        self_test: expected outputs of this model.
    """

    weights: Literal["int8", "float16"]
    pictures: Annotated[int, Field(ge=0)]
    top1: Share
    agreement: Share
    self_test: SelfTest


class Onnx(_Strict):
    """The same network as an ONNX model in float32, in `ONNX_FILE`, written by `tenfold export --add`.

    Attributes:
        self_test: expected outputs of this model.
    """

    self_test: SelfTest


class ModelCard(_Strict):
    """card.json.

    Attributes:
        format_version: of card.json.
        name: of the bundle.
        architecture: the network.
        labels: class names, in the order of the logits.
        input: the test transform.
        complexity: size of the network.
        training: how the weights were trained.
        metrics: measured on the test set, in float32.
        calibration: from logits to probabilities.
        out_of_distribution: constants of the out-of-distribution score.
        reference: distributions of the predictions for held-out images; None if they were not measured, for example
            because no images were held out. Predictions do not depend on them.
        files: SHA-256 of each file that an engine reads, by name.
        self_test: expected outputs in float32.
        openvino: the OpenVINO model; None if the bundle has none.
        onnx: the ONNX model; None if the bundle has none.
    """

    format_version: Literal[5]
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    architecture: Architecture
    labels: Annotated[List[str], Field(min_length=2)]
    input: InputSpec
    complexity: Complexity
    training: Training
    metrics: Metrics
    calibration: Calibration
    out_of_distribution: OutOfDistribution
    reference: Reference | None = None
    files: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Sha256]
    self_test: SelfTest
    openvino: OpenVino | None
    onnx: Onnx | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels are not unique")
        if self.architecture.arguments.get("num_classes") != len(self.labels):
            raise ValueError("architecture.arguments.num_classes is not the number of labels")
        if not {*self.labels}.issuperset(
            label for mistake in self.metrics.mistakes for label in (mistake.label, mistake.predicted)
        ):
            raise ValueError("metrics.mistakes names a class that is not in labels")
        tests = {"self_test": self.self_test}
        if self.openvino:
            tests["openvino.self_test"] = self.openvino.self_test
        if self.onnx:
            tests["onnx.self_test"] = self.onnx.self_test
        for name, test in tests.items():
            if any(len(row) != len(self.labels) for row in (*test.logits, *test.probabilities)):
                raise ValueError(f"{name}.logits or probabilities does not have one column per label")
            if not len(test.logits) == len(test.probabilities) == len(test.scores) == len(test.in_distribution):
                raise ValueError(f"the lists of {name} do not have the same length")
        for name in (WEIGHTS_FILE, *(OPENVINO_FILES if self.openvino else ()), *((ONNX_FILE,) if self.onnx else ())):
            if name not in self.files:
                raise ValueError(f"files does not contain {name}")
        return self

    @model_validator(mode="after")
    def _by_class(self) -> Self:
        by_class: dict[str, Sized] = {"metrics.confusion": self.metrics.confusion}
        ood_score = self.out_of_distribution.score
        if not isinstance(ood_score, Energy):
            by_class["out_of_distribution.score.class_directions"] = ood_score.class_directions
        if self.reference:
            by_class["reference.classes"] = self.reference.classes
        for name, rows in by_class.items():
            if len(rows) != len(self.labels):
                raise ValueError(f"{name} does not have one row per label")
        return self

    @cached_property
    def version(self) -> str:
        """First 12 hex digits of a SHA-256 over all that determines a prediction.

        That is the `REVISION` of the code, and the constants and file hashes of the card. Training history and metrics
        are not included. Predictions of two cards with the same version are the same on the same engine.
        """
        constants = {"revision": REVISION, **self.model_dump(mode="json", include=_DECISIVE)}
        return hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest()[:12]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As in pydantic. The copy has a version of its own."""
        copy = super().model_copy(update=update, deep=deep)
        copy.__dict__.pop("version", None)
        return copy

    def self_test_on(self, engine: str) -> SelfTest:
        """The expected outputs of the engine with this name."""
        own = {"openvino": self.openvino, "onnx": self.onnx}.get(engine)
        return own.self_test if own else self.self_test


_REQUIRED = {name for name, field in ModelCard.model_fields.items() if field.is_required()}


def read_card(path: Path) -> ModelCard:
    """Read and validate card.json.

    Raises:
        CardError: it is missing, too large, has another format version, or a field is unknown, missing or invalid. The
            message names the field.
    """
    try:
        if path.exists() and not path.is_file():
            raise CardError(f"{path} is not a regular file: name a folder that contains a card.json")
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CARD_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CardError(
            f"{path} cannot be read: name a weights folder that contains a card.json, as tenfold train writes it"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CardError(f"{path} cannot be read ({reason}): copy the bundle again") from error
    if len(text) > MAX_CARD_BYTES or sum(map(text.count, ":[{")) > _MAX_PARTS:
        raise CardError(
            f"{path} has more than {MAX_CARD_BYTES:,} characters or {_MAX_PARTS:,} parts: export the bundle again"
        )
    found = re.search(r'"format_version":\s*(\d{1,9})', text)
    if found and int(found[1]) in CONVERTIBLE_FORMATS:
        raise CardError(f"{path} has format {found[1]}: convert it with python -m model.upgrade {path.parent}")
    fields: Any = None
    with suppress(ValueError):
        fields = from_json(text)
    if isinstance(fields, dict) and (missing := _REQUIRED - set(fields)):  # each report would repeat the whole card
        raise CardError(f"{path}: {min(missing)}: Field required; export the bundle again")
    try:
        return ModelCard.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the card"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise CardError(f"{path}: {where}: {first['msg']}{more}; export the bundle again") from error
