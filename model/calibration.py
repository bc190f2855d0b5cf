"""From the outputs of a network to calibrated probabilities and an out-of-distribution score."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.card import ClassMeanCosine, Energy, Mixture, OutOfDistribution, Thresholds
from model.views import mean_over_views, starts_of

Verdict = Literal["accepted", "uncertain", "other"]
"""accepted: the image appears to be one of the classes. uncertain: it may be. other: it is probably none of them."""

MIN_SPREAD = 1.0
"""Lower limit of the spread in `scaled_logits`. Images of other things often have a smaller one. Without the limit they
had higher probabilities, and the calibration of the shipped weights was hardly better."""

_CELLS = 8


def scaled_logits(logits: NDArray[np.float32], temperature: float, exponent: float = 0.0) -> NDArray[np.float64]:
    """Divide each row by its temperature, which is `temperature` times its spread to the power of `exponent`.

    The spread of a row is its largest logit less the mean of its logits. With an exponent of 0 this is temperature
    scaling (Guo et al. 2017, arXiv:1706.04599). A temperature that depends on the logits is from Tomani et al. 2022,
    "Parameterized Temperature Scaling", arXiv:2102.12182, who compute it by a small network.

    Args:
        logits: float32[N, C].
        temperature: > 0.
        exponent: -1..1.
    """
    values = logits.astype(np.float64)
    if exponent:
        spread = values.max(axis=1, keepdims=True) - values.mean(axis=1, keepdims=True)
        temperatures: NDArray[np.float64] = temperature * np.maximum(spread, MIN_SPREAD) ** exponent
        return values / temperatures
    return values / temperature


def softmax(logits: NDArray[np.float32], temperature: float = 1.0, exponent: float = 0.0) -> NDArray[np.float32]:
    """Softmax of each row after `scaled_logits`.

    Args:
        logits: float32[N, C].
        temperature: > 0.
        exponent: -1..1.

    Returns:
        float32[N, C].
    """
    return _softmax(scaled_logits(logits, temperature, exponent))


def probabilities_of_images(
    logits: NDArray[np.float32], counts: Sequence[int], temperature: float, exponent: float = 0.0
) -> NDArray[np.float32]:
    """The probabilities of images in several views: the softmax of the mean of their scaled logits.

    This is the weighted geometric mean of the probabilities of the views, divided by its sum, also called logarithmic
    opinion pool (Genest & Zidek 1986, "Combining Probability Distributions", Statistical Science 1). A view whose
    probabilities are nearly equal, such as a close-up of the background, hardly changes the result.

    Args:
        logits: of all N views, one image after the other, float32[N, C].
        counts: numbers of views of the M images, whose sum is N.
        temperature: as in `scaled_logits`.
        exponent: likewise.

    Returns:
        float32[M, C].
    """
    return _softmax(mean_over_views(scaled_logits(logits, temperature, exponent), counts))


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float32]:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32)


def energy(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The logarithm of the sum of the exponentials of each row, the negative energy of Liu et al. 2020.

    Source: "Energy-based Out-of-distribution Detection", arXiv:2010.03759.

    Args:
        logits: float32[N, C].

    Returns:
        float64[N]. High for images that resemble the training images.
    """
    largest = logits.max(axis=1).astype(np.float64)
    found: NDArray[np.float64] = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=1))
    return found


def pixel_statistics(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Contrast and coarseness, which are low for images without content, such as one colour and noise.

    The contrast is the standard deviation of the grey values, which are the means of the channels. The coarseness is
    the share of it that remains in the means over 8 x 8 equal cells. White noise of 32 x 32 pixels has a coarseness of
    0.2 to 0.4. The images of CIFAR-10 have at least 0.44.

    Args:
        pixels: N views, uint8[N, S, S, 3].

    Returns:
        float64[N, 2]: contrast, 0..255, and coarseness, 0..1.
    """
    count, side = pixels.shape[:2]
    cells = min(_CELLS, side)
    cell = side // cells
    part = pixels[:, : cells * cell, : cells * cell].astype(np.float32)
    grey = (part[..., 0] + part[..., 1] + part[..., 2]) / 3  # faster than a sum over the short axis
    means = grey.reshape(count, cells, cell, cells, cell).mean(axis=(2, 4))
    contrast = grey.std(axis=(1, 2))
    coarseness = means.std(axis=(1, 2)) / np.maximum(contrast, 1e-6)
    statistics: NDArray[np.float64] = np.stack([contrast, coarseness], axis=1).astype(np.float64)
    return statistics


def class_mean_cosine(
    features: NDArray[np.float32], mean: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The largest cosine between the features and a class direction.

    Features and class means are centred on the mean of the class means. In a trained network the centred features of
    each class concentrate along one direction (neural collapse, Papyan et al. 2020, arXiv:2008.08186). The features of
    other images lie between these directions.

    Args:
        features: pooled, penultimate, float32[N, D].
        mean: of the class means, float64[D].
        directions: of length 1, float64[C, D].

    Returns:
        float64[N], -1..1. High for images that resemble the training images.
    """
    centred = features - mean
    lengths = np.sqrt(np.einsum("nd,nd->n", centred, centred))
    cosines: NDArray[np.float64] = (centred @ directions.T).max(axis=1) / np.maximum(lengths, 1e-12)
    return cosines


class OutOfDistributionScore:
    """The out-of-distribution score of a card, with its lists as arrays.

    Args:
        spec: of the card.

    Attributes:
        width: number of features that the score needs; None if it needs none.
    """

    def __init__(self, spec: OutOfDistribution) -> None:
        score = spec.score
        self._has_energy = not isinstance(score, ClassMeanCosine)
        self._energy_weight = self._cosine_weight = 1.0
        if isinstance(score, Mixture):
            self._energy_weight, self._cosine_weight = score.energy_weight, score.cosine_weight
        self._class_means, self.width = None, None
        if not isinstance(score, Energy):
            self._class_means = np.asarray(score.feature_mean), np.asarray(score.class_directions)
            self.width = len(score.feature_mean)
        self._least = spec.least_contrast, spec.least_coarseness
        self._quantiles = np.asarray(spec.quantiles)
        self._fractions = np.linspace(0, 1, len(spec.quantiles))

    def of_images(
        self,
        logits: NDArray[np.float32],
        features: NDArray[np.float32],
        statistics: NDArray[np.float64],
        counts: Sequence[int] | None = None,
    ) -> NDArray[np.float64]:
        """The scores of images: the mean over their views by `view_weights`, or -inf if no view has content.

        A view has content if both statistics of its pixels are at least the lowest of the held-out images.

        Args:
            logits: of all N views, float32[N, C].
            features: pooled, penultimate, float32[N, D].
            statistics: of the pixels, float64[N, 2], see `pixel_statistics`.
            counts: numbers of views of the M images, whose sum is N; by default each image has one view.

        Returns:
            float64[M]. High for images that resemble the training images.
        """
        scores = self.of_views(logits, features)
        has_content = (statistics >= self._least).all(axis=1)
        if counts is not None:
            scores = mean_over_views(scores, counts)
            has_content = np.logical_or.reduceat(has_content, starts_of(counts))
        return np.where(has_content, scores, -np.inf)

    def of_views(self, logits: NDArray[np.float32], features: NDArray[np.float32]) -> NDArray[np.float64]:
        """The scores of N views, float64[N], whether they have content or not."""
        scores = np.zeros(len(logits))
        if self._has_energy:
            scores += self._energy_weight * energy(logits)
        if self._class_means:
            scores += self._cosine_weight * class_mean_cosine(features, *self._class_means)
        return scores

    def fractions(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The fraction of held-out images that do not score higher, an empirical p-value.

        It is interpolated between the quantiles.

        Args:
            scores: float64[N].

        Returns:
            float64[N], 0..1.
        """
        return np.interp(scores, self._quantiles, self._fractions)


def verdict(in_distribution: float, confidence: float, thresholds: Thresholds, min_confidence: float = 0.0) -> Verdict:
    """Whether an image appears to be one of the classes.

    Args:
        in_distribution: fraction of held-out images that do not score higher, 0..1.
        confidence: probability of the most probable class, 0..1.
        thresholds: of the card.
        min_confidence: an image with a lower confidence is not accepted.
    """
    if in_distribution < thresholds.uncertain:
        return "other"
    if in_distribution < thresholds.accepted or confidence < min_confidence:
        return "uncertain"
    return "accepted"
