"""Name -> network. To add one, write its builder and add it to `BUILDERS` (see CONTRIBUTING.md)."""

import inspect
from collections.abc import Callable
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


def build(name: str, **arguments: Any) -> Network:
    """Build the network `name` with new random weights.

    Args:
        name: a key of `BUILDERS`.
        **arguments: the builder's keyword arguments: `num_classes`, and others such as `stem`.

    Raises:
        RecipeError: there is no such network, or it does not take these arguments.
    """
    builder = _builder(name)
    try:
        return builder(**arguments)
    except (TypeError, ValueError) as error:
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


def _builder(name: str) -> Callable[..., Network]:
    if name not in BUILDERS:
        raise RecipeError(f"there is no network {name!r}: choose one of {', '.join(BUILDERS)}")
    return BUILDERS[name]
