"""Name -> network. To add one, write its builder and add it to `BUILDERS` (see CONTRIBUTING.md)."""

import inspect
import re
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

from model.errors import RecipeError
from model.nets.base import Network
from model.nets.resnet import BasicBlock, Bottleneck, ResNet
from model.nets.resnet9 import ResNet9

BUILDERS: dict[str, Callable[..., Network]] = {
    "resnet9": partial(ResNet9, (32, 64, 176, 256)),
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "resnext50_32x4d": partial(ResNet, Bottleneck, (3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
    "wide_resnet50_2": partial(ResNet, Bottleneck, (3, 4, 6, 3), width_per_group=128),
}

TIMM = "timm:"
"""Prefix of the names of timm's networks."""

TIMM_NETWORKS = tuple(
    TIMM + name
    for name in (
        "res2net50_26w_4s",
        "hrnet_w18",
        "pvt_v2_b0",
        "pvt_v2_b1",
        "pvt_v2_b2",
        "convnext_atto",
        "mobilenetv3_small_050",
    )
)
"""The networks of timm that the documentation lists and the tests train. Any other classifier of timm can be built."""


def build(name: str, **arguments: Any) -> Network:
    """Build the network `name` with new random weights.

    Args:
        name: a key of `BUILDERS`, or `TIMM` and the name of a classifier of timm.
        **arguments: the builder's keyword arguments: `num_classes`, and others such as `stem`.

    Raises:
        RecipeError: there is no such network, timm is not installed, or the network does not take these arguments.
    """
    builder = _builder(name)
    try:
        return builder(**arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"the network {name!r} cannot be built: {error}") from error


def accepts(name: str, argument: str) -> bool:
    """Whether the builder of the network `name` takes this keyword argument.

    Raises:
        RecipeError: there is no such network.
    """
    parameters = inspect.signature(_builder(name)).parameters.values()
    return any(
        parameter.kind is parameter.VAR_KEYWORD
        or (parameter.name == argument and parameter.kind is not parameter.POSITIONAL_ONLY)
        for parameter in parameters
    )


def short_name(name: str) -> str:
    """The name of a network as part of the name of a bundle: pvt_v2_b0 for timm:pvt_v2_b0."""
    return re.sub(r"[^\w.-]", "-", name.removeprefix(TIMM), flags=re.ASCII)


def _builder(name: str) -> Callable[..., Network]:
    if name in BUILDERS:
        return BUILDERS[name]
    if not name.startswith(TIMM):
        known = {short_name(each): each for each in (*TIMM_NETWORKS, *BUILDERS)}
        close = ", ".join(known[each] for each in get_close_matches(name, known, n=5))
        hint = f"did you mean {close}?" if close else f"choose one of {', '.join(BUILDERS)}, {TIMM}NAME"
        raise RecipeError(f"there is no network {name!r}: {hint}")
    try:
        from model.nets.timm import TimmNetwork
    except ModuleNotFoundError as error:
        raise RecipeError(f"the network {name!r} needs {error.name}: install tenfold[zoo]") from error
    return partial(TimmNetwork, name.removeprefix(TIMM))
