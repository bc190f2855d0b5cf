"""3x3 convolutions over small maps as one matrix product, which is faster for the last stages on a CPU.

oneDNN's bfloat16 convolution is limited by memory bandwidth if the weights are larger than the map. Measured on two
Xeon cores with AMX, forward and backward, in microseconds per image at batch size 125:

    512 -> 512 channels at 4x4            1536 -> 518
    256 -> 512 channels at 8x8, stride 2  1034 -> 299
    512 -> 512 channels at 3x3            1119 -> 288
    256 -> 256 channels at 8x8             400 -> 667    (so the side is limited)
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _MatmulConv3x3(torch.autograd.Function):
    """conv2d with a 3x3 kernel and padding 1, through im2col."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        count, channels, height, width = x.shape
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
        n, h, w, c = padded.stride()
        windows = padded.as_strided((count, rows, columns, 3, 3, channels), (n, h * stride, w * stride, h, w, c))
        patches = windows.reshape(count * rows * columns, 9 * channels)
        flat = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
        ctx.save_for_backward(patches, flat)
        ctx.geometry = (x.shape, rows, columns, stride)
        return (patches @ flat.t()).view(count, rows, columns, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        patches, flat = ctx.saved_tensors
        (count, channels, height, width), rows, columns, stride = ctx.geometry
        grad = grad.permute(0, 2, 3, 1).reshape(count * rows * columns, -1)
        grad_weight = (grad.t() @ patches).view(-1, 3, 3, channels).permute(0, 3, 1, 2)
        grad_windows = (grad @ flat).view(count, rows, columns, 3, 3, channels)
        # In float32, because up to nine windows are summed in one pixel.
        padded = grad.new_zeros((count, height + 2, width + 2, channels), dtype=torch.float32)
        for i in range(3):
            for j in range(3):
                padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride] += grad_windows[
                    :, :, :, i, j
                ]
        grad_x = padded[:, 1:-1, 1:-1].permute(0, 3, 1, 2).to(grad.dtype)
        return grad_x, grad_weight, None


class MatmulConv2d(nn.Conv2d):
    """A 3x3 convolution that uses the matrix product if its output is at most `side` pixels wide."""

    side: int

    def forward(self, x: Tensor) -> Tensor:
        stride = self.stride[0]
        if (x.shape[-1] - 1) // stride + 1 > self.side:
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        out: Tensor = _MatmulConv3x3.apply(x.to(dtype), self.weight.to(dtype), stride)
        return out if self.bias is None else out + self.bias.to(dtype)[:, None, None]


def use_matmul_convolutions(net: nn.Module, side: int) -> None:
    """Make every plain 3x3 convolution of `net` use the matrix product for outputs of up to `side` pixels width.

    Parameters and state-dict keys do not change. A convolution with groups, dilation, other padding than one pixel of
    zeros, or different strides in the two directions stays as it is.
    """
    for module in net.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (3, 3)
            and module.padding == (1, 1)
            and module.padding_mode == "zeros"
            and module.dilation == (1, 1)
            and module.stride[0] == module.stride[1]
            and module.groups == 1
        ):
            module.__class__ = MatmulConv2d
            module.side = side  # type: ignore[assignment]
