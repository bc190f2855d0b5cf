"""Fit the constants of `model.calibration` to held-out images."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.calibration import class_mean_cosine
from model.card import Calibration, OutOfDistribution

ACCEPTED = 0.95
"""Fraction of held-out images that the threshold accepts."""

UNCALIBRATED = Calibration(temperature=1.0, views=1, pictures=0)
"""For a network without held-out images."""

_QUANTILES = 101


def fit_temperature(logits: NDArray[np.float32], truth: NDArray[np.int64]) -> Calibration:
    """Find the temperature with the smallest negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    As in `model.classifier`, the probabilities of an image are the mean over its views.

    Args:
        logits: of N >= 1 images with V views each, float32[N, V, C].
        truth: right classes, int64[N].
    """
    images, views, _ = logits.shape
    values = torch.from_numpy(logits).double()
    labels = torch.from_numpy(truth)[:, None, None].expand(images, views, 1)
    # log(1 / T). For one view the loss is convex in 1 / T.
    inverse = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        by_view = F.log_softmax(values * inverse.exp(), dim=2).gather(2, labels)[..., 0]
        loss = math.log(views) - by_view.logsumexp(dim=1).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    temperature = round(float(torch.exp(-inverse.detach()).clamp(0.05, 20)), 4)
    return Calibration(temperature=temperature, views=views, pictures=images)


def fit_out_of_distribution(
    features: NDArray[np.float32], truth: NDArray[np.int64], num_classes: int
) -> OutOfDistribution:
    """Compute the class means and the quantiles of the out-of-distribution score.

    As in `model.classifier`, the score of an image is the mean over its views.

    Args:
        features: of N >= 1 images with V views each, float32[N, V, D].
        truth: right classes, int64[N].
        num_classes: C.
    """
    images, views, width = features.shape
    known = np.unique(truth)
    means = np.stack([features[truth == label].mean(axis=(0, 1), dtype=np.float64) for label in known])
    centre = means.mean(axis=0)
    directions = np.zeros((num_classes, width))
    directions[known] = means - centre
    directions /= np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-12)
    spec = OutOfDistribution(
        method="class-mean-cosine",
        feature_mean=np.round(centre, 6).tolist(),
        class_directions=np.round(directions, 6).tolist(),
        quantiles=[-1.0, 1.0],
        threshold=round(1 - ACCEPTED, 6),
        views=views,
        pictures=images,
    )
    scores = class_mean_cosine(features.reshape(-1, width), spec).reshape(images, views).mean(axis=1)
    quantiles = np.quantile(scores, np.linspace(0, 1, _QUANTILES))
    return spec.model_copy(update={"quantiles": np.round(quantiles, 6).tolist()})
