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


def class_mean_cosine(features: NDArray[np.float32], spec: OutOfDistribution) -> NDArray[np.float64]:
    """The out-of-distribution score: the largest cosine between the features and a class direction.

    Features and class means are centred on the mean of the class means. In a trained network the centred features of
    each class concentrate along one direction (neural collapse, Papyan et al. 2020, arXiv:2008.08186). The features of
    other images lie between these directions.

    Args:
        features: pooled, penultimate features, float32[N, D].
        spec: the mean and the class directions.

    Returns:
        float64[N], -1..1. High for images that resemble the training images.
    """
    return nearest_cosine(features, *class_means(spec))


def class_means(spec: OutOfDistribution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of the class means, float64[D], and the class directions, float64[C, D], as arrays."""
    return np.asarray(spec.feature_mean), np.asarray(spec.class_directions)


def nearest_cosine(
    features: NDArray[np.float32], mean: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`class_mean_cosine` with the constants from `class_means`, so that the card's lists are converted only once."""
    centred = features - mean
    lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    scores: NDArray[np.float64] = (centred / lengths @ directions.T).max(axis=1)
    return scores


def in_distribution(scores: NDArray[np.float64], spec: OutOfDistribution) -> NDArray[np.float64]:
    """The fraction of held-out images that do not score higher, an empirical p-value.

    Args:
        scores: float64[N].
        spec: the quantiles, between which the fraction is interpolated.

    Returns:
        float64[N], 0..1.
    """
    return np.interp(scores, spec.quantiles, np.linspace(0, 1, len(spec.quantiles)))
