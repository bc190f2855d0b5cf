"""Fitting what `model.calibration` applies, to pictures that the network has not learnt from."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.calibration import class_mean_cosine
from model.card import Calibration, OutOfDistribution

ACCEPTED = 0.95
"""Share of pictures of the classes that the threshold accepts."""

UNCALIBRATED = Calibration(temperature=1.0, pictures=0)
"""For a network with no held-out pictures to fit a temperature to."""

_QUANTILES = 101


def fit_temperature(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> Calibration:
    """The temperature with the least negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: float32[N, C], N >= 1.
        truth: class numbers, int64[N].
    """
    values, labels = torch.from_numpy(logits).double(), torch.from_numpy(truth)
    inverse = torch.zeros(
        (), dtype=torch.float64, requires_grad=True
    )  # log(1 / temperature): the loss is convex in 1/T
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(values * inverse.exp(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return Calibration(temperature=round(float(torch.exp(-inverse.detach()).clamp(0.05, 20)), 4), pictures=len(truth))


def fit_out_of_distribution(
    features: NDArray[np.float32], truth: NDArray[np.int64], num_classes: int
) -> OutOfDistribution:
    """Means and quantiles of the score.

    Args:
        features: of N >= 1 pictures, float32[N, D].
        truth: their class numbers, int64[N].
        num_classes: C.
    """
    known = np.unique(truth)
    means = np.stack([features[truth == label].mean(axis=0, dtype=np.float64) for label in known])
    centre = means.mean(axis=0)
    directions = np.zeros((num_classes, features.shape[1]))
    directions[known] = means - centre
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    spec = OutOfDistribution(
        method="class-mean-cosine",
        feature_mean=np.round(centre, 6).tolist(),
        class_directions=np.round(directions, 6).tolist(),
        quantiles=[-1.0, 1.0],
        threshold=round(1 - ACCEPTED, 6),
        pictures=len(features),
    )
    quantiles = np.quantile(class_mean_cosine(features, spec), np.linspace(0, 1, _QUANTILES))
    return spec.model_copy(update={"quantiles": np.round(quantiles, 6).tolist()})
