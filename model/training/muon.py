"""Muon: orthogonalised momentum for the filters of convolutions.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", as Jordan's cifar10-airbench uses it:
filters keep a fixed norm, so that the learning rate is the angle by which a step turns them. torch.optim.Muon only
takes matrices and does not fix their norm.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from model.engines.torch import has_bfloat16

_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose step is replaced by the nearest semi-orthogonal matrix.

    A weight of shape [out, in, h, w] is treated as a matrix with `out` rows. Before each step it is scaled to the
    Frobenius norm sqrt(out). The network's function does not depend on that scale if a normalisation layer follows.

    Args:
        params: weights of two or more dimensions.
        lr: the size of a step, approximately as a fraction of the norm of the weight.
        momentum: 0..1.
        iterations: of Newton-Schulz.
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, momentum: float = 0.9, iterations: int = 3
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "iterations": iterations})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update every weight that has a gradient. `closure` is not used."""
        for group in self.param_groups:
            # Weights of the same shape share one batched product.
            alike: defaultdict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state: dict[str, Any] = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                ahead = weight.grad.add(
                    state["momentum"].mul_(group["momentum"]).add_(weight.grad), alpha=group["momentum"]
                )
                matrix = ahead.flatten(1)
                alike[tuple(matrix.shape)].append((weight, matrix))
            for pairs in alike.values():
                steps = orthogonalised(torch.stack([matrix for _, matrix in pairs]), group["iterations"])
                for (weight, _), step in zip(pairs, steps, strict=True):
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
                    weight.sub_(step.view(weight.shape).to(weight.dtype), alpha=group["lr"])


def orthogonalised(matrices: Tensor, iterations: int) -> Tensor:
    """Move the singular values of each matrix close to 1 (0.7 to 1.2) by a quintic Newton-Schulz iteration.

    Args:
        matrices: float[N, R, C].
        iterations: 5 is the usual number, 3 is less exact.

    Returns:
        bfloat16[N, R, C]; float32 on a device without instructions for bfloat16.
    """
    x: Tensor = matrices.to(torch.bfloat16 if has_bfloat16(matrices.device) else torch.float32)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    for _ in range(iterations):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x
