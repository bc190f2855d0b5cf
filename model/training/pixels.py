"""A network from pixels to outputs, in the form that runtimes other than PyTorch run."""

import torch
from torch import Tensor, nn

from model.card import InputSpec
from model.nets.base import Network


class PixelNetwork(nn.Module):
    """A network with its normalisation.

    Takes "pixels", uint8[N, crop, crop, 3], RGB. Returns the float32 outputs of `Outputs`: logits, pooled features and,
    if the network has them, class-activation maps.

    Args:
        net: the network.
        spec: mean and std of the card.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Network, spec: InputSpec) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None] * 255)
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None] * 255)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        features = self.net.forward_features((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std)
        return tuple(output for output in self.net.forward_head(features) if output is not None)
