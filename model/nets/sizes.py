"""How large a network is, and how it is explained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from model.nets.base import count_multiply_adds, count_parameters
from model.nets.zoo import TIMM, build

Explained = Literal["exact maps", "Grad-CAM", "no"]


@dataclass(frozen=True, slots=True)
class NetworkSize:
    """The size of a network.

    Attributes:
        parameters: number of trained values.
        multiply_adds: of one forward pass over one image.
        cells: height and width of the last feature map.
        explained: how /explain works: exact class-activation maps, Grad-CAM with the engine torch, or not at all.
    """

    parameters: int
    multiply_adds: int
    cells: tuple[int, int]
    explained: Explained


def size_of(name: str, side: int, arguments: Mapping[str, Any]) -> NetworkSize:
    """Build a network and measure it for images of side x side pixels.

    Raises:
        RecipeError: the network cannot be built.
    """
    with torch.device("cpu" if name.startswith(TIMM) else "meta"):  # the adapter of timm tests the head by running it
        net = build(name, **arguments)
    net.eval().to("meta")  # shapes without computing
    with torch.inference_mode():
        features = net.forward_features(torch.zeros(1, 3, side, side, device="meta"))
        maps = net.forward_head(features).maps
    explained: Explained = "exact maps" if maps is not None else "Grad-CAM" if net.spatial else "no"
    height, width = features.shape[2:]
    return NetworkSize(count_parameters(net), count_multiply_adds(net, side), (height, width), explained)


def extra_of(name: str) -> str:
    """The extra of the package that a network needs in addition to `torch`, or nothing."""
    return "zoo" if name.startswith(TIMM) else ""
