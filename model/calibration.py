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


def fdbd(features: NDArray[np.float32], logits: NDArray[np.float32], spec: OutOfDistribution) -> NDArray[np.float64]:
    """The score of Liu & Qin 2024, "Fast Decision Boundary based Out-of-Distribution Detector" (arXiv:2312.11536).

    The mean distance of a picture's features from the boundaries between its likeliest class and each other one,
    divided by their distance from the mean feature. It is high for pictures like those learnt from.

    Args:
        features: penultimate, float[N, D].
        logits: uncalibrated, float[N, C].
        spec: the mean feature, and the boundaries' scale.

    Returns:
        float64[N], at least 0.
    """
    wide = logits.astype(np.float64)
    top = wide.argmax(axis=1)
    gaps = wide[np.arange(len(wide)), top][:, None] - wide
    scale = np.asarray(spec.boundary_norms)[top]
    np.put_along_axis(scale, top[:, None], 1.0, axis=1)  # no boundary with itself; its gap is 0
    to_boundaries = (gaps / scale).sum(axis=1) / (wide.shape[1] - 1)
    from_mean = np.linalg.norm(features - np.asarray(spec.feature_mean), axis=1)
    scores: NDArray[np.float64] = to_boundaries / np.maximum(from_mean, 1e-12)
    return scores


def in_distribution(scores: NDArray[np.float64], spec: OutOfDistribution) -> NDArray[np.float64]:
    """The share, 0..1, of held-out pictures of the classes that score no higher; float64[N] to float64[N]."""
    return np.interp(scores, spec.quantiles, np.linspace(0, 1, len(spec.quantiles)))
