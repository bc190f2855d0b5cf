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

EXPONENT_GAIN = 5.0
"""Nats by which an exponent must raise the log-likelihood of the held-out images. Otherwise it is 0."""

_QUANTILES = 101
# Number of training images that replace the held-out images if there are none.
_SUBSTITUTES = 5000
# Of the reference distributions of values, as usual for the population stability index.
_BINS = 10


class Fitted(NamedTuple):
    """The images that constants are fitted to, as the network sees them.

    Attributes:
        out: outputs for N >= 1 images in one view each.
        truth: right classes, int64[N].
        held_out: whether the network was not trained on them.
    """

    out: Observed
    truth: NDArray[np.int64]
    held_out: bool


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
    """Run an engine over the held-out images, or over training images if none were held out.

    Args:
        engine: with the network.
        spec: test transform of the card.
        data: that the network was trained on.
    """
    held_out = len(data.holdout) > 0
    images = data.holdout if held_out else data.train[:_SUBSTITUTES]
    return Fitted(outputs(engine, spec, images.pixels.numpy()), images.labels.numpy(), held_out)


def fit(images: Fitted, *, outliers: bool) -> Constants:
    """Fit all constants. Without held-out images the temperature is 1, and there are no reference distributions.

    Args:
        images: from `observe`.
        outliers: whether the network was trained with outliers.
    """
    out, truth, held_out = images
    logits, features, statistics = out.logits[:, None], out.features[:, None], out.statistics[:, None]
    calibration = fit_calibration(logits, truth) if held_out else UNCALIBRATED
    ood = fit_out_of_distribution(logits, features, statistics, truth, outliers=outliers)
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

    def loss() -> Tensor:
        scale = inverse.exp() * spread ** -exponent.clamp(-1, 1)
        return F.cross_entropy((values * scale * weights).sum(dim=1), labels)

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
) -> OutOfDistribution:
    """Choose the out-of-distribution score and compute its constants.

    The score is the energy for a network that was trained with outliers, since their loss acts on the logits. It is the
    mean of the energy and the class-mean cosine, each divided by its standard deviation, for any other network. The
    measurements that led to this rule are in docs/training.md.

    As in `model.classifier`, the score of an image is the mean over its views by `view_weights`.

    Args:
        logits: of N >= 1 images with V views each, float32[N, V, C].
        features: float32[N, V, D].
        statistics: of the pixels, float64[N, V, 2], see `model.calibration.pixel_statistics`.
        truth: right classes, int64[N].
        outliers: whether the network was trained with outliers.
    """
    images, views, classes = logits.shape
    rows = logits.reshape(-1, classes), features.reshape(images * views, -1)
    contrast, coarseness = statistics.reshape(-1, 2).min(axis=0).tolist()
    spec = OutOfDistribution(
        score=Energy(method="energy") if outliers else _fit_mixture(*rows, np.repeat(truth, views)),
        quantiles=[0.0, 0.0],
        least_contrast=math.floor(contrast * 100) / 100,
        least_coarseness=math.floor(coarseness * 10_000) / 10_000,
        thresholds=THRESHOLDS,
        views=views,
        pictures=images,
    )
    scores = OutOfDistributionScore(spec).of_views(*rows).reshape(images, views) @ view_weights(views)
    quantiles = np.quantile(scores, np.linspace(0, 1, _QUANTILES))
    return spec.model_copy(update={"quantiles": np.round(quantiles, 6).tolist()})


def _fit_mixture(logits: NDArray[np.float32], features: NDArray[np.float32], truth: NDArray[np.int64]) -> Mixture:
    """Args:
    logits: float32[N, C].
    features: float32[N, D].
    truth: right classes, int64[N].
    """
    known = np.unique(truth)
    means = np.stack([features[truth == label].mean(axis=0, dtype=np.float64) for label in known])
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
