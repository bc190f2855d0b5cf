"""What a network's numbers mean: calibrated probabilities, and how much a picture looks like the classes at all."""

import numpy as np
from numpy.typing import NDArray

from model.card import OutOfDistribution


def softmax(logits: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float32]:
    """Probabilities of each row, float32[N, C], after dividing it by the temperature (Guo et al. 2017)."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32)


def class_mean_cosine(features: NDArray[np.float32], spec: OutOfDistribution) -> NDArray[np.float64]:
    """The cosine between a picture's features and the nearest class mean, both seen from the mean of all classes.

    In a trained network the features of each class gather along one direction (Papyan et al. 2020, "Prevalence of
    neural collapse"); those of other pictures lie between.

    Args:
        features: penultimate, float[N, D].
        spec: the mean of all classes, and the classes' directions.

    Returns:
        float64[N], -1..1; high for pictures like those learnt from.
    """
    return nearest_cosine(features, *class_means(spec))


def class_means(spec: OutOfDistribution) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of all classes, float64[D], and the classes' directions from it, float64[C, D]."""
    return np.asarray(spec.feature_mean), np.asarray(spec.class_directions)


def nearest_cosine(
    features: NDArray[np.float32], mean: NDArray[np.float64], directions: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`class_mean_cosine` for many calls: the card's lists become arrays once, by `class_means`."""
    centred = features - mean
    lengths = np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    scores: NDArray[np.float64] = (centred / lengths @ directions.T).max(axis=1)
    return scores


def in_distribution(scores: NDArray[np.float64], spec: OutOfDistribution) -> NDArray[np.float64]:
    """The share, 0..1, of held-out pictures of the classes that score no higher; float64[N] to float64[N]."""
    return np.interp(scores, spec.quantiles, np.linspace(0, 1, len(spec.quantiles)))
