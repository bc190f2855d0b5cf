"""Scores of a set of logits, and how to get the outputs for a data set from an engine."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.calibration import class_mean_cosine, in_distribution, softmax
from model.card import Calibration, InputSpec, OutOfDistribution, ReliabilityBin
from model.engines.base import Engine, Outputs
from model.image import test_transform
from model.training.data import LabeledImages
from model.training.ood import KINDS, others

ECE_BINS = 15
_OTHERS = 2000


@dataclass(frozen=True, slots=True)
class Scores:
    """How good the predictions for N pictures of C classes are.

    Attributes:
        pictures: N.
        top1: share whose likeliest class is right, 0..1.
        nll: mean negative log-likelihood, nats.
        ece: expected calibration error, 0..1.
        per_class: share of each class's pictures that is right, float64[C].
        confusion: pictures of true class i that were taken for class j, int64[C, C].
        bins: for each of the 15 bins of confidence: number of pictures, mean confidence, share right; float64[15, 3].
        probabilities: float32[N, C].
        truth: int64[N].
    """

    pictures: int
    top1: float
    nll: float
    ece: float
    per_class: NDArray[np.float64]
    confusion: NDArray[np.int64]
    bins: NDArray[np.float64]
    probabilities: NDArray[np.float32]
    truth: NDArray[np.int64]


def score(logits: NDArray[np.float32], truth: NDArray[np.int64], temperature: float = 1.0) -> Scores:
    """Score float32[N, C] logits, divided by the temperature, against int64[N] class numbers.

    The expected calibration error is that of Guo et al. 2017 (arXiv:1706.04599): 15 bins of equal width over the
    likeliest class's probability, the gap between confidence and accuracy weighted by the bin's share of pictures.
    """
    count, classes = logits.shape
    logits = logits / np.float32(temperature)
    probabilities = softmax(logits)
    chosen = probabilities.argmax(1)
    right = chosen == truth
    confidence = probabilities[np.arange(count), chosen].astype(np.float64)
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_likelihood = shifted[np.arange(count), truth] - np.log(np.exp(shifted).sum(1))

    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (truth, chosen), 1)
    totals = confusion.sum(1)
    per_class = np.divide(confusion.diagonal(), totals, out=np.full(classes, np.nan), where=totals > 0)

    # Bin i holds (i/15, (i+1)/15].
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
        count, float(right.mean()), float(-log_likelihood.mean()), ece, per_class, confusion, bins, probabilities, truth
    )


def reliability(scores: Scores) -> list[ReliabilityBin]:
    """The bins that hold any pictures, by ascending confidence, as a card tells of them."""
    return [
        ReliabilityBin(confidence=round(confidence, 6), accuracy=round(accuracy, 6), pictures=int(pictures))
        for pictures, confidence, accuracy in scores.bins.tolist()
        if pictures
    ]


def auroc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> float:
    """Chance that a random member of `inside` scores higher than one of `outside`, ties counting half; 0..1."""
    scores = np.concatenate([inside, outside])
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    above = ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2
    return float(above / (len(inside) * len(outside)))


def outputs(
    engine: Engine,
    spec: InputSpec,
    pixels: NDArray[np.uint8],
    *,
    batch_size: int = 100,
    progress: Callable[[int], None] | None = None,
) -> Outputs:
    """An engine's outputs for pictures, each through the serving path's own test transform, one view.

    Args:
        engine: to run.
        spec: of the card.
        pixels: uint8[N, H, W, 3].
        batch_size: pictures in one call of the engine.
        progress: is told after each batch how many pictures it held.
    """
    parts = []
    for start in range(0, len(pixels), batch_size):
        part = pixels[start : start + batch_size]
        parts.append(engine.run(np.stack([test_transform(Image.fromarray(picture), spec) for picture in part])))
        if progress:
            progress(len(part))
    return Outputs(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a bundle's numbers are worth on a test set.

    Attributes:
        scores: with its calibrated probabilities.
        uncalibrated: at temperature 1.
        auroc: of the out-of-distribution score, test pictures against each other kind, 0..1.
        accepted: share accepted of the test pictures ("test") and of each other kind, 0..1.
    """

    scores: Scores
    uncalibrated: Scores
    auroc: dict[str, float]
    accepted: dict[str, float]


def assess(
    engine: Engine,
    spec: InputSpec,
    calibration: Calibration,
    out_of_distribution: OutOfDistribution,
    test: LabeledImages,
    *,
    progress: Callable[[int], None] | None = None,
) -> Assessment:
    """Run the test pictures, and at most 2,000 of each kind in `model.training.ood`, and score what comes out.

    Args:
        engine: to run.
        spec: of the card.
        calibration: of the card.
        out_of_distribution: of the card.
        test: pictures and their labels.
        progress: is told after each batch how many pictures it held; `assessed` says how many there will be.
    """
    pixels, truth = test.pixels.numpy(), test.labels.numpy()

    def looked_at(part: NDArray[np.uint8]) -> tuple[Outputs, NDArray[np.float64]]:
        out = outputs(engine, spec, part, progress=progress)
        return out, class_mean_cosine(out.features, out_of_distribution)

    out, inside = looked_at(pixels)
    found = {"test": inside}
    for name, made in others(pixels[:_OTHERS]).items():
        found[name] = looked_at(made)[1]
    return Assessment(
        scores=score(out.logits, truth, calibration.temperature),
        uncalibrated=score(out.logits, truth),
        auroc={name: auroc(inside, values) for name, values in found.items() if name != "test"},
        accepted={
            name: float((in_distribution(values, out_of_distribution) >= out_of_distribution.threshold).mean())
            for name, values in found.items()
        },
    )


def assessed(test: LabeledImages) -> int:
    """How many pictures `assess` runs."""
    return len(test) + len(KINDS) * min(len(test), _OTHERS)
