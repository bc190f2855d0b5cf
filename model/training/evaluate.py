"""Scores of a set of logits, and how to get the logits of a data set from an engine."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.card import InputSpec
from model.classifier import softmax
from model.engines.base import Engine
from model.image import test_transform
from model.training.data import Pictures

ECE_BINS = 15


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


def score(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> Scores:
    """Score float32[N, C] logits against int64[N] class numbers.

    The expected calibration error is that of Guo et al. 2017 (arXiv:1706.04599): 15 bins of equal width over the
    likeliest class's probability, the gap between confidence and accuracy weighted by the bin's share of pictures.
    """
    count, classes = logits.shape
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


def measure(
    engine: Engine,
    spec: InputSpec,
    pictures: Pictures,
    *,
    batch_size: int = 100,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Score an engine on labelled pictures, each through the serving path's own test transform, one view.

    Args:
        engine: to score.
        spec: of the card.
        pictures: uint8[N, H, W, 3] and their labels.
        batch_size: pictures in one call of the engine.
        progress: is told after each batch how many pictures it held.
    """
    logits = []
    for start in range(0, len(pictures), batch_size):
        part = pictures.pixels[start : start + batch_size].numpy()
        logits.append(engine.logits(np.stack([test_transform(Image.fromarray(pixels), spec) for pixels in part])))
        if progress:
            progress(len(part))
    return score(np.concatenate(logits), pictures.labels.numpy())
