"""BatchNorm over the batches of all ranks, so that a network trains as in one process.

PyTorch has such a layer for CUDA only. On a CPU, the statistics of the ranks are combined here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode


def synchronise_batch_norm(net: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm layer of `net` normalise by the statistics of all ranks in training mode.

    Parameters and state-dict keys do not change, and neither do layers that are derived from BatchNorm, as timm's are.
    """
    if device.type == "cuda":
        if any(type(module).__module__.startswith("timm.") for module in net.modules()):
            from timm.layers.norm_act import convert_sync_batchnorm

            convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        else:
            nn.SyncBatchNorm.convert_sync_batchnorm(net)  # type: ignore[no-untyped-call]
        return
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            kind = type(module)
            module.__class__ = type(f"Synchronised{kind.__name__}", (_SynchronisedLayer, kind), {})


class _SynchronisedLayer(nn.Module):
    """Put before a BatchNorm layer in the order of bases."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        with _SynchronisedFunction():
            return super().forward(x)  # type: ignore[no-any-return]


class _SynchronisedFunction(TorchFunctionMode):
    """Replaces F.batch_norm."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """torch.nn.functional.batch_norm, in training mode over the batches of all ranks. Its arguments are the same.

    The statistics of the ranks are combined as in Chan, Golub, LeVeque, "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979.
    """
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, momentum=momentum, eps=eps)
    channels = x.shape[1]
    values = x.float()
    own_var, own_mean = torch.var_mean(values, [0, *range(2, x.ndim)], correction=0)
    own = torch.cat([own_mean, own_var, own_mean.new_full((1,), x.numel() / channels)])
    rank = dist.get_rank()
    rows = [own if number == rank else torch.zeros_like(own) for number in range(dist.get_world_size())]
    means, variances, counts = _Sum.apply(torch.stack(rows)).split([channels, channels, 1], dim=1)
    count = counts.sum()
    mean = (means * counts).sum(0) / count
    var = ((variances + (means - mean) ** 2) * counts).sum(0) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * count / (count - 1), momentum)
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias
    shape = [channels] + [1] * (x.ndim - 2)
    normalised: Tensor = values * scale.view(shape) + shift.view(shape)
    return normalised.to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all ranks. The gradient is the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:  # noqa: ARG004
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad
