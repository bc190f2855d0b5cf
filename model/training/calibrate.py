"""Fit the constants of `model.calibration` to held-out images."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.calibration import MIN_SPREAD, OutOfDistributionScore, class_mean_cosine, energy, softmax
from model.card import (
    Calibration,
    Energy,
    Histogram,
    InputSpec,
    Mixture,
    ModelCard,
    OutOfDistribution,
    Reference,
    Thresholds,
)
from model.engines.base import Engine
from model.errors import DataError
from model.training.data import DataSet
from model.training.evaluate import Observed, outputs
from model.views import view_weights

THRESHOLDS = Thresholds(accepted=0.05, uncertain=0.02)
"""95 % of the held-out images are accepted, and 2 % are classified as other images."""

UNCALIBRATED = Calibration(temperature=1.0, views=1, pictures=0)
"""For a network without held-out images."""

TEMPERATURE_RANGE = 20.0
"""Largest factor between a temperature and 1. That of an untrained network would have no limit."""

TEMPERATURE_DEVIATION = 0.5
"""Standard deviation of a normal prior on the logarithm of the temperature, whose mean is 0. Without a prior, a few
images that are all right have the lowest temperature, and every probability becomes 1."""

EXPONENT_GAIN = 5.0
"""Nats by which an exponent must raise the log-likelihood of the held-out images. Otherwise it is 0."""

FEW_IMAGES = 200
"""With fewer held-out images, what is fitted to them is rough, and the page of the bundle says so."""

_QUANTILES = 101
# Number of training images that replace the held-out images if there are none, or are added to few of them.
_SUBSTITUTES = 5000
# With fewer held-out images of a class on average, their class means would say more about them than about new images.
_FEW_PER_CLASS = 50
# The lowest quantile of few images is that of this fraction.
_LOWEST = 0.001
# Of the reference distributions of values, as usual for the population stability index.
_BINS = 10


class Fitted(NamedTuple):
    """The images that constants are fitted to, as the network sees them.

    Attributes:
        out: outputs for N >= 1 images in one view each.
        truth: right classes, int64[N].
        held_out: whether the network was not trained on them.
        known: outputs for training images and their classes, if there are few held-out images. The class means and the
            lowest statistics of pixels are those of these images. None otherwise.
    """

    out: Observed
    truth: NDArray[np.int64]
    held_out: bool
    known: tuple[Observed, NDArray[np.int64]] | None = None


class Constants(NamedTuple):
    """What `fit` finds.

    Attributes:
        calibration: of a card.
        out_of_distribution: of a card.
        reference: of a card; None without held-out images.
    """

    calibration: Calibration
    out_of_distribution: OutOfDistribution
    reference: Reference | None


def observe(engine: Engine, spec: InputSpec, data: DataSet) -> Fitted:
    """Run an engine over the held-out images, over training images if none were held out, or over both if few were.

    Args:
        engine: with the network.
        spec: test transform of the card.
        data: that the network was trained on.
    """
    train = data.train[:_SUBSTITUTES]
    held_out = len(data.holdout) > 0
    images = data.holdout if held_out else train
    known = None
    if 0 < len(data.holdout) < _FEW_PER_CLASS * len(data.labels):
        known = outputs(engine, spec, train.pixels.numpy()), train.labels.numpy()
    return Fitted(outputs(engine, spec, images.pixels.numpy()), images.labels.numpy(), held_out, known)


def fit(images: Fitted, *, outliers: bool) -> Constants:
    """Fit all constants. Without held-out images the temperature is 1, and there are no reference distributions.

    Args:
        images: from `observe`.
        outliers: whether the network was trained with outliers.
    """
    out, truth, held_out, known = images
    logits, features, statistics = out.logits[:, None], out.features[:, None], out.statistics[:, None]
    calibration = fit_calibration(logits, truth) if held_out else UNCALIBRATED
    ood = fit_out_of_distribution(logits, features, statistics, truth, outliers=outliers, known=known)
    return Constants(calibration, ood, reference_of(out, calibration, ood) if held_out else None)


def measure_reference(engine: Engine, card: ModelCard, data: DataSet) -> Reference:
    """The distributions of the predictions for the held-out images, with the constants of a card.

    Args:
        engine: with the network.
        card: of its bundle.
        data: that the network was trained on.

    Raises:
        DataError: no images were held out.
    """
    if not len(data.holdout):
        raise DataError(f"no images of {data.name} were held out: there is nothing to compare live images with")
    out = outputs(engine, card.input, data.holdout.pixels.numpy())
    return reference_of(out, card.calibration, card.out_of_distribution)


def reference_of(out: Observed, calibration: Calibration, out_of_distribution: OutOfDistribution) -> Reference:
    """The distributions of predictions. The bins of values have equal numbers of images, as far as values differ.

    Args:
        out: outputs for N >= 1 held-out images in one view each.
        calibration: of the card.
        out_of_distribution: of the card.
    """
    probabilities = softmax(out.logits, calibration.temperature, calibration.exponent)
    score = OutOfDistributionScore(out_of_distribution)
    fractions = score.fractions(score.of_images(out.logits, out.features, out.statistics))
    images, classes = probabilities.shape
    return Reference(
        classes=np.bincount(probabilities.argmax(axis=1), minlength=classes).tolist(),
        confidence=_histogram(probabilities.max(axis=1)),
        in_distribution=_histogram(fractions),
        views=1,
        pictures=images,
    )


def _histogram(values: NDArray[np.floating[Any]]) -> Histogram:
    """The values in up to `_BINS` bins, whose edges are quantiles."""
    inner = np.quantile(values.astype(np.float64), np.linspace(0, 1, _BINS + 1)[1:-1])
    edges = [edge for edge in np.unique(np.round(inner, 7)).tolist() if edge > values.min()]
    places = np.searchsorted(edges, values, side="right")
    return Histogram(edges=edges, pictures=np.bincount(places, minlength=len(edges) + 1).tolist())


def fit_calibration(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> Calibration:
    """Find the temperature and the exponent with the smallest negative log-likelihood (`scaled_logits`).

    The logarithm of the temperature of an image with the mean spread has a normal prior, which matters for few images.

    A network that was trained with outliers is often right about images that it gives a low confidence, and an exponent
    above 0 raises it. The exponent remains 0 unless it raises the log-likelihood by `EXPONENT_GAIN`. The probabilities
    of an image are those of `model.calibration.probabilities_of_images`.

    Args:
        logits: of N >= 1 images with V views each, float32[N, V, C].
        truth: right classes, int64[N].
    """
    images, views, _ = logits.shape
    values = torch.from_numpy(logits).double()
    labels, weights = torch.from_numpy(truth), torch.from_numpy(view_weights(views).copy())[:, None]
    spread = (values.amax(2, keepdim=True) - values.mean(2, keepdim=True)).clamp(min=MIN_SPREAD)
    # log(1 / T). For each exponent the loss is convex in 1 / T.
    inverse = torch.zeros((), dtype=torch.float64, requires_grad=True)
    exponent = torch.zeros((), dtype=torch.float64, requires_grad=True)
    mean_spread = spread.log().mean()

    def loss() -> Tensor:
        power = exponent.clamp(-1, 1)
        scaled: Tensor = values * inverse.exp() * spread**-power
        nll = F.cross_entropy((scaled * weights).sum(dim=1), labels)
        total: Tensor = nll + temperature_penalty(inverse - power * mean_spread) / images
        return total

    minimise(loss, inverse)
    nll, alone = loss().item(), _temperature(inverse)
    minimise(loss, inverse, exponent)
    gain, temperature = images * (nll - loss().item()), _temperature(inverse)
    # At a limit, the exponent belongs to a temperature outside of it.
    inside = all(1 / TEMPERATURE_RANGE < value < TEMPERATURE_RANGE for value in (alone, temperature))
    if gain < EXPONENT_GAIN or not inside:
        return Calibration(temperature=alone, views=views, pictures=images)
    found = round(float(exponent.detach().clamp(-1, 1)), 4)
    return Calibration(temperature=temperature, exponent=found, views=views, pictures=images)


def temperature_penalty(log_inverse: Tensor) -> Tensor:
    """The negative logarithm of the prior of a temperature T, up to a constant, nats.

    Args:
        log_inverse: log(1 / T).
    """
    deviations: Tensor = log_inverse / TEMPERATURE_DEVIATION
    return deviations * deviations / 2


def _temperature(inverse: Tensor) -> float:
    return round(float(torch.exp(-inverse.detach()).clamp(1 / TEMPERATURE_RANGE, TEMPERATURE_RANGE)), 4)


def minimise(loss: Callable[[], Tensor], *parameters: Tensor) -> None:
    """Change a few parameters so that a smooth loss of them is lowest, by L-BFGS."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def fit_out_of_distribution(
    logits: NDArray[np.float32],
    features: NDArray[np.float32],
    statistics: NDArray[np.float64],
    truth: NDArray[np.int64],
    *,
    outliers: bool,
    known: tuple[Observed, NDArray[np.int64]] | None = None,
) -> OutOfDistribution:
    """Choose the out-of-distribution score and compute its constants.

    The score is the energy for a network that was trained with outliers, since their loss acts on the logits. It is the
    mean of the energy and the class-mean cosine, each divided by its standard deviation, for any other network. The
    measurements that led to this rule are in docs/training.md.

    The quantiles are those of new images: of n images, the lowest is at the fraction 1 / (n + 1). Below it the scores
    are extrapolated with an exponential distribution.

    As in `model.classifier`, the score of an image is the mean over its views by `view_weights`.

    Args:
        logits: of N >= 1 images with V views each, float32[N, V, C].
        features: float32[N, V, D].
        statistics: of the pixels, float64[N, V, 2], see `model.calibration.pixel_statistics`.
        truth: right classes, int64[N].
        outliers: whether the network was trained with outliers.
        known: as in `Fitted`.
    """
    images, views, classes = logits.shape
    rows = logits.reshape(-1, classes), features.reshape(images * views, -1)
    of_classes = (rows[1], np.repeat(truth, views)) if known is None else (known[0].features, known[1])
    lowest = np.concatenate([statistics.min(axis=1), *([] if known is None else [known[0].statistics])])
    # New images can be a little below the lowest of few.
    contrast, coarseness = (lowest.min(axis=0) * (1 - 1 / np.sqrt(len(lowest)))).tolist()
    spec = OutOfDistribution(
        score=Energy(method="energy") if outliers else _fit_mixture(*rows, *of_classes),
        quantiles=[0.0, 0.0],
        least_contrast=math.floor(contrast * 100) / 100,
        least_coarseness=math.floor(coarseness * 10_000) / 10_000,
        thresholds=THRESHOLDS,
        views=views,
        pictures=images,
    )
    scores = OutOfDistributionScore(spec).of_views(*rows).reshape(images, views) @ view_weights(views)
    return spec.model_copy(update={"quantiles": np.round(quantiles_of(scores), 6).tolist()})


def quantiles_of(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The quantiles 0, 0.01, ... 1 of new images, from the scores of N images, float64[N]."""
    fractions = np.linspace(0, 1, _QUANTILES)
    found: NDArray[np.float64] = np.quantile(scores, fractions, method="weibull")
    lowest, least = 1 / (len(scores) + 1), scores.min()
    median = np.median(scores)
    # The scale of an exponential distribution is the mean distance of the lower half from the median.
    scale = np.maximum(median - scores, 0).sum() / max(int((scores < median).sum()), 1)
    below = fractions < lowest
    found[below] = least - scale * np.log(np.maximum(lowest / np.maximum(fractions[below], _LOWEST), 1))
    return found


def _fit_mixture(
    logits: NDArray[np.float32],
    features: NDArray[np.float32],
    of_classes: NDArray[np.float32],
    truth: NDArray[np.int64],
) -> Mixture:
    """Args:
    logits: float32[N, C].
    features: float32[N, D].
    of_classes: features whose means are those of the classes, float32[M, D].
    truth: right classes of these, int64[M].
    """
    known = np.unique(truth)
    means = np.stack([of_classes[truth == label].mean(axis=0, dtype=np.float64) for label in known])
    centre = means.mean(axis=0)
    directions = np.zeros((logits.shape[1], features.shape[1]))
    directions[known] = means - centre
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    centre, directions = np.round(centre, 6), np.round(directions, 6)
    return Mixture(
        method="mixture",
        feature_mean=centre.tolist(),
        class_directions=directions.tolist(),
        energy_weight=_half_per_deviation(energy(logits)),
        cosine_weight=_half_per_deviation(class_mean_cosine(features, centre, directions)),
    )


def _half_per_deviation(values: NDArray[np.float64]) -> float:
    return float(f"{0.5 / max(float(values.std()), 1e-3):.6g}")
