"""Name -> network. To add one: write its builder and give it a line in `BUILDERS`."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from model.errors import RecipeError
from model.nets.resnet import BasicBlock, Bottleneck, ResNet

BUILDERS: Mapping[str, Callable[..., ResNet]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
}


def build(name: str, **arguments: Any) -> ResNet:
    """Build the network `name` with freshly drawn weights.

    Args:
        name: a key of `BUILDERS`.
        **arguments: the builder's own keyword arguments, such as `num_classes` and `stem`.

    Raises:
        RecipeError: there is no such network, or it does not take these arguments.
    """
    if name not in BUILDERS:
        raise RecipeError(f"there is no network {name!r}: choose one of {', '.join(BUILDERS)}")
    try:
        return BUILDERS[name](**arguments)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"the network {name!r} cannot be built: {error}") from error


def count_parameters(net: nn.Module) -> int:
    """How many learned numbers the network holds."""
    return sum(parameter.numel() for parameter in net.parameters())


def map_size(net: ResNet, side: int) -> tuple[int, int]:
    """Rows and columns of the maps of a picture of side x side."""
    shapes = copy.deepcopy(net).float().eval().to("meta")  # knows shapes without computing
    with torch.inference_mode():
        rows, columns = shapes.stages(torch.zeros(1, 3, side, side, device="meta")).shape[2:]
    return rows, columns


def count_multiply_adds(net: nn.Module, side: int) -> int:
    """Multiply-adds of one forward pass over one picture of side x side, convolutions and linear layers only."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes = copy.deepcopy(net).eval().to("meta")  # counts without computing
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shapes(torch.zeros(1, 3, side, side, device="meta"))
    return int(counter.get_total_flops()) // 2
