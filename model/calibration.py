"""From the outputs of a network to calibrated probabilities and an out-of-distribution score."""

import numpy as np
from numpy.typing import NDArray

from model.card import OutOfDistribution


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Softmax of each row after division by a temperature (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: float32[N, C].
        temperature: > 0.

    Returns:
        float32[N, C].
    """
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32)


class ClassMeanCosine:
    """The out-of-distribution score, with the lists of the card as arrays.

    The score is the largest cosine between the features and a class direction. Features and class means are centred on
    the mean of the class means. In a trained network the centred features of each class concentrate along one direction
    (neural collapse, Papyan et al. 2020, arXiv:2008.08186). The features of other images lie between these directions.

    Args:
        spec: of the card.
    """

    def __init__(self, spec: OutOfDistribution) -> None:
        self._mean = np.asarray(spec.feature_mean)
        self._directions = np.asarray(spec.class_directions).T
        self._quantiles = np.asarray(spec.quantiles)
        self._fractions = np.linspace(0, 1, len(spec.quantiles))

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """The scores of pooled, penultimate features.

        Args:
            features: float32[N, D].

        Returns:
            float64[N], -1..1. High for images that resemble the training images.
        """
        centred = features - self._mean
        lengths = np.sqrt(np.einsum("nd,nd->n", centred, centred))
        scores: NDArray[np.float64] = (centred @ self._directions).max(axis=1) / np.maximum(lengths, 1e-12)
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


def class_mean_cosine(features: NDArray[np.float32], spec: OutOfDistribution) -> NDArray[np.float64]:
    """`ClassMeanCosine.scores` for a single call."""
    return ClassMeanCosine(spec).scores(features)


def in_distribution(scores: NDArray[np.float64], spec: OutOfDistribution) -> NDArray[np.float64]:
    """`ClassMeanCosine.fractions` for a single call."""
    return ClassMeanCosine(spec).fractions(scores)
