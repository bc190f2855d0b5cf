"""Fitting what `model.calibration` applies, to pictures that the network has not learnt from."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model.calibration import fdbd
from model.card import Calibration, OutOfDistribution
from model.engines.base import Outputs

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


def fit_out_of_distribution(out: Outputs, head: NDArray[np.float32]) -> OutOfDistribution:
    """Mean feature, boundaries and quantiles of the score.

    Args:
        out: of N pictures of the classes, N >= 1.
        head: weights of the last layer, float32[C, D].
    """
    wide = head.astype(np.float64)
    norms = np.linalg.norm(wide[:, None] - wide[None], axis=2)
    spec = OutOfDistribution(
        method="fdbd",
        feature_mean=[round(float(value), 6) for value in out.features.mean(axis=0, dtype=np.float64)],
        boundary_norms=[[round(float(norm), 6) for norm in row] for row in norms],
        quantiles=[0.0, 1.0],
        threshold=round(1 - ACCEPTED, 6),
        pictures=len(out.logits),
    )
    scores = fdbd(out.features, out.logits, spec)
    quantiles = np.quantile(scores, np.linspace(0, 1, _QUANTILES))
    return spec.model_copy(update={"quantiles": [float(value) for value in quantiles]})
