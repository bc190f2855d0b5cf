"""Run an engine over a data set, and score its outputs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.calibration import OutOfDistributionScore, pixel_statistics, scaled_logits
from model.card import Calibration, InputSpec, Mistake, OutOfDistribution, ReliabilityBin
from model.classifier import Classifier, load
from model.engines.base import DeviceName, Engine, EngineName
from model.errors import ModelError, TrainingError
from model.image import test_transform
from model.training.data import (
    CACHE,
    CIFAR10_LABELS,
    LabeledImages,
    Sources,
    TestPart,
    folder_of,
    load_again,
    load_cifar10_test,
    load_test,
    split_sources,
)
from model.training.ood import others
from model.training.words import counted

ECE_BINS = 15
OTHERS = 2000
"""Out-of-distribution images of each kind that `assess` runs, at most."""

Progress = Callable[[int, int], None]
"""Called after each batch with the number of images done and the total."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How good the predictions for N images of C classes are.

    Attributes:
        images: N.
        top1: fraction of images whose most probable class is right, 0..1.
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error, 0..1.
        per_class: accuracy on the images of each class (recall), 0..1, NaN for a class without images; float64[C].
        f1: harmonic mean of precision and recall of each class, 0..1, NaN likewise; float64[C].
        macro: mean of `per_class` over the classes with images (balanced accuracy), 0..1.
        confusion: number of images of class i that are predicted as class j, int64[C, C].
        bins: number of images, mean confidence and accuracy in each of the 15 bins of confidence, float64[15, 3].
        probabilities: float32[N, C].
        truth: right classes, int64[N].
    """

    images: int
    top1: float
    nll: float
    ece: float
    per_class: NDArray[np.float64]
    f1: NDArray[np.float64]
    macro: float
    confusion: NDArray[np.int64]
    bins: NDArray[np.float64]
    probabilities: NDArray[np.float32]
    truth: NDArray[np.int64]


def score(
    logits: NDArray[np.float32], truth: NDArray[np.int64], temperature: float = 1.0, exponent: float = 0.0
) -> Scores:
    """Score logits against the right classes.

    The expected calibration error is that of Guo et al. 2017 (arXiv:1706.04599): 15 bins of equal width over the
    probability of the most probable class. The gap between confidence and accuracy is weighted by the bin's fraction
    of the images.

    Args:
        logits: float32[N, C].
        truth: right classes, int64[N].
        temperature: of `scaled_logits`.
        exponent: likewise.
    """
    count, classes = logits.shape
    shifted = scaled_logits(logits, temperature, exponent)
    shifted -= shifted.max(1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    probabilities = np.exp(log_probabilities).astype(np.float32)
    chosen = probabilities.argmax(1)
    right = chosen == truth
    confidence = probabilities[np.arange(count), chosen].astype(np.float64)
    log_likelihood = log_probabilities[np.arange(count), truth]

    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (truth, chosen), 1)
    per_class, f1 = class_scores(confusion)

    # Bin i contains confidences in (i/15, (i+1)/15].
    index = np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    sizes = np.bincount(index, minlength=ECE_BINS).astype(np.float64)
    filled = np.maximum(sizes, 1)
    bins = np.stack(
        [
            sizes,
            np.bincount(index, confidence, ECE_BINS) / filled,
            np.bincount(index, right.astype(np.float64), ECE_BINS) / filled,
        ],
        axis=1,
    )
    ece = float((sizes * np.abs(bins[:, 1] - bins[:, 2])).sum() / count)
    return Scores(
        images=count,
        top1=float(right.mean()),
        nll=float(-log_likelihood.mean()),
        ece=ece,
        per_class=per_class,
        f1=f1,
        macro=float(np.nanmean(per_class)),
        confusion=confusion,
        bins=bins,
        probabilities=probabilities,
        truth=truth,
    )


def class_scores(confusion: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The accuracy (recall) and the F1 score of each class, float64[C], NaN for a class without images.

    Args:
        confusion: number of images of class i that are predicted as class j, int64[C, C].
    """
    right, images, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    nothing = np.full(len(confusion), np.nan)
    accuracy = np.divide(right, images, out=nothing.copy(), where=images > 0)
    return accuracy, np.divide(2 * right, images + predicted, out=nothing, where=images > 0)


def reliability(scores: Scores) -> list[ReliabilityBin]:
    """The bins that contain images, by ascending confidence, for a card."""
    return [
        ReliabilityBin(confidence=round(confidence, 6), accuracy=round(accuracy, 6), pictures=int(images))
        for images, confidence, accuracy in scores.bins.tolist()
        if images
    ]


def mistakes(scores: Scores, labels: Sequence[str], count: int = 12, *, files: Sequence[str] = ()) -> list[Mistake]:
    """The wrongly classified images with the highest confidence, by descending confidence, for a card.

    Args:
        scores: of the images.
        labels: of the classes.
        count: number of mistakes, at most.
        files: path of each image, or "" if it has no file of its own; empty if none has.
    """
    chosen = scores.probabilities.argmax(1)
    wrong = np.flatnonzero(chosen != scores.truth)
    order = np.argsort(-scores.probabilities[wrong, chosen[wrong]], kind="stable")
    return [
        Mistake(
            image=int(index),
            file=(files[index] or None) if files else None,
            label=labels[scores.truth[index]],
            predicted=labels[chosen[index]],
            probability=round(float(scores.probabilities[index, chosen[index]]), 6),
        )
        for index in wrong[order][:count]
    ]


def auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Area under the ROC curve: the probability that a random member of `inside` scores higher than one of `outside`.

    Ties count half.

    Returns:
        0..1.
    """
    scores = np.concatenate([inside, outside])
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    above = ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


class Observed(NamedTuple):
    """What calibration and scoring need of N images, one view each.

    Attributes:
        logits: float32[N, C].
        features: pooled, penultimate features, float32[N, D].
        statistics: of the pixels, float64[N, 2], see `model.calibration.pixel_statistics`.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    statistics: NDArray[np.float64]


def outputs(
    engine: Engine,
    spec: InputSpec,
    pixels: NDArray[np.uint8],
    *,
    progress: Callable[[int], None] | None = None,
) -> Observed:
    """Run an engine over images of a data set, one view each, preprocessed as in the service.

    Args:
        engine: to run.
        spec: test transform of the card.
        pixels: uint8[N, H, W, 3].
        progress: called after each batch with the number of images in it.

    Raises:
        TrainingError: the outputs of the network are not finite.
    """
    parts = []
    for start in range(0, len(pixels), engine.preferred_batch):
        part = pixels[start : start + engine.preferred_batch]
        views = np.stack([test_transform(Image.fromarray(image), spec) for image in part])
        out = engine.run(views)
        if not (np.isfinite(out.logits).all() and np.isfinite(out.features).all()):
            raise TrainingError("the outputs of the network are not finite: train it again at a lower rate")
        parts.append(Observed(out.logits, out.features, pixel_statistics(views)))
        if progress:
            progress(len(part))
    return Observed(*map(np.concatenate, zip(*parts, strict=True)))


@dataclass(frozen=True, slots=True)
class Assessment:
    """The quality of a bundle's predictions on a test set.

    Attributes:
        scores: of the calibrated probabilities.
        uncalibrated: of the softmax of the logits.
        auroc: of the out-of-distribution score, test images against each other kind of images, 0..1.
        accepted: fraction of the test images ("test") and of each other kind of images with the verdict "accepted",
            0..1.
        other: the same with the verdict "other".
    """

    scores: Scores
    uncalibrated: Scores
    auroc: dict[str, float]
    accepted: dict[str, float]
    other: dict[str, float]


def assess(
    engine: Engine,
    spec: InputSpec,
    calibration: Calibration,
    out_of_distribution: OutOfDistribution,
    test: LabeledImages,
    *,
    progress: Progress | None = None,
) -> Assessment:
    """Run and score the test images, and at most 2,000 out-of-distribution images of each kind (`model.training.ood`).

    Args:
        engine: to run.
        spec: test transform of the card.
        calibration: of the card.
        out_of_distribution: of the card.
        test: images with labels.
        progress: called after each batch.
    """
    pixels, truth = test.pixels.numpy(), test.labels.numpy()
    unknown = others(pixels[:OTHERS])
    total = len(pixels) + sum(map(len, unknown.values()))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress:
            progress(done, total)

    out = outputs(engine, spec, pixels, progress=advance)
    ood_score, thresholds = OutOfDistributionScore(out_of_distribution), out_of_distribution.thresholds
    by_kind = {"test": ood_score.of_images(out.logits, out.features, out.statistics)}
    for name, images in unknown.items():
        by_kind[name] = ood_score.of_images(*outputs(engine, spec, images, progress=advance))
    fractions = {name: ood_score.fractions(values) for name, values in by_kind.items()}
    return Assessment(
        scores=score(out.logits, truth, calibration.temperature, calibration.exponent),
        uncalibrated=score(out.logits, truth),
        auroc={name: auroc(by_kind["test"], by_kind[name]) for name in unknown},
        accepted={name: float((values >= thresholds.accepted).mean()) for name, values in fractions.items()},
        other={name: float((values < thresholds.uncertain).mean()) for name, values in fractions.items()},
    )


def evaluate_bundle(
    folder: Path,
    data: Sources,
    *,
    part: TestPart = "auto",
    engine: EngineName = "auto",
    device: DeviceName = "auto",
    limit: int | None = None,
    cache: Path = CACHE,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> tuple[Classifier, Assessment]:
    """Load a bundle and assess it on a folder of images, or on the CIFAR-10 test set.

    Args:
        folder: of the bundle.
        data: where the images are. Images that were added in training count if their folders are named again.
        part: which images of a single folder, as in `load_test`.
        engine: as in `model.load`.
        device: as in `model.load`.
        limit: use only the first so many test images.
        cache: where decoded images of a folder are kept.
        report: called with lines of text about a folder of images.
        progress: called after each batch.

    Raises:
        ModelError: the bundle, the engine or the data cannot be used, or the classes are not those of the data.
    """
    classifier = load(folder, engine=engine, device=device)
    card = classifier.card
    first, others = split_sources(data)
    single = folder_of(first) is not None and not others
    if part == "all" and not single:
        raise ModelError("--part all is for one folder of images: give one --data folder:PATH")
    if single:
        test = load_test(card, first, part=part, limit=limit, cache=cache, report=report, progress=progress)
    elif others:
        test = load_again(card, data, limit=limit, cache=cache, report=report, progress=progress).test
    elif tuple(card.labels) != CIFAR10_LABELS:
        raise ModelError(
            f"the classes of {folder} are not the ten of CIFAR-10: give their images by --data folder:PATH"
        )
    else:
        test = load_cifar10_test(Path(first))[:limit]
    if not single:
        report(f"testing on {counted(len(test), 'test image')} of {' and '.join(map(str, (first, *others)))}")
    assessment = assess(
        classifier.engine, card.input, card.calibration, card.out_of_distribution, test, progress=progress
    )
    return classifier, assessment
