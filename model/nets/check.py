"""A check of the Network contract that takes a second, for before a training run that takes hours."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.card import InputSpec
from model.errors import RecipeError
from model.nets.base import HeadOutputs, Network

_BATCH = 2
# Largest difference between two ways to compute a logit in float32, as a fraction of the largest logit.
_TOLERANCE = 1e-3


def check_network(
    net: nn.Module, spec: InputSpec, *, num_classes: int, sides: Iterable[int] = (), single: bool = False
) -> None:
    """Run the network once at each image size and compare its outputs with the contract in model/nets/base.py.

    Args:
        net: on the CPU; it is not altered.
        spec: of the recipe or the card; images of crop x crop pixels are tested.
        num_classes: of the data.
        sides: further image sizes that it will be trained at, in pixels.
        single: whether it will be trained on batches of one image.

    Raises:
        RecipeError: the network breaks the contract, or cannot be trained on one image; the message says how.
    """
    if not isinstance(net, Network):
        raise RecipeError(f"{type(net).__name__} is not a Network: derive it from Network of model/nets/base.py")
    _check_names(net)
    evaluated = copy.deepcopy(net).eval()
    every = sorted({spec.crop, *sides})
    for side in every:
        _check_outputs(evaluated, side, num_classes)
    _check_forward(evaluated, every[0])
    if single:
        _check_single(copy.deepcopy(net).train(), every[0])


def _check_names(net: Network) -> None:
    known = {name for name, _ in net.named_parameters()}
    for method in (net.muon_parameters, net.no_weight_decay):
        if unknown := sorted(set(method()) - known):
            raise _broken(net, f"{method.__name__} names {unknown[0]!r}, which is not one of its parameters")
    if unknown := sorted(net.classifier_keys() - net.state_dict().keys()):
        raise _broken(net, f"classifier_keys names {unknown[0]!r}, which its state dict does not contain")


def _check_outputs(net: Network, side: int, num_classes: int) -> None:
    features: Tensor = _run(net.forward_features, _images(side), net, side)
    if features.ndim != 4 or len(features) != _BATCH:
        raise _broken(net, f"forward_features returns the shape {list(features.shape)}, not [N, D, h, w]")
    out: HeadOutputs = _run(net.forward_head, features, net, side)
    logits = [_BATCH, num_classes]
    if list(out.logits.shape) != logits or net.num_classes != num_classes:
        raise _broken(
            net, f"num_classes is {net.num_classes} and {list(out.logits.shape)} the shape of the logits, not {logits}"
        )
    if not out.logits.isfinite().all():
        raise _broken(net, f"its logits for random images of {side} x {side} pixels are not finite")
    if out.features.ndim != 2 or len(out.features) != _BATCH:
        raise _broken(net, f"forward_head returns features of shape {list(out.features.shape)}, not [N, D]")
    maps = [*logits, *features.shape[2:]]
    if out.maps is not None and list(out.maps.shape) != maps:
        raise _broken(net, f"forward_head returns maps of shape {list(out.maps.shape)}, not {maps}")
    if out.maps is not None:
        constants = out.logits - out.maps.sum((2, 3))
        if not _close(constants, constants[:1], out.logits):
            raise _broken(net, "its maps do not sum to the logits less a constant: return None for the maps")


def _check_forward(net: Network, side: int) -> None:
    logits = _run(net.forward_head, _run(net.forward_features, _images(side), net, side), net, side).logits
    if not _close(_run(net, _images(side), net, side), logits, logits):
        raise _broken(net, "forward and forward_head return different logits")


def _check_single(net: Network, side: int) -> None:
    """BatchNorm needs two values per channel. A last feature map of one pixel has one."""
    try:
        with torch.no_grad():
            net(_images(side)[:1])
    except ValueError as error:
        raise RecipeError(
            f"{type(net).__name__} cannot be trained on batches of one image of {side} x {side} pixels, because "
            "BatchNorm needs two values: set a larger batch_size, or add images"
        ) from error


def _images(side: int) -> Tensor:
    return torch.randn(_BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))


def _close(one: Tensor, other: Tensor, logits: Tensor) -> bool:
    return bool((one - other).abs().max() <= _TOLERANCE * logits.abs().max())


def _run(part: Callable[[Tensor], Any], tensor: Tensor, net: Network, side: int) -> Any:
    """Call a part of the network; what it raises becomes the error that says at which image size."""
    try:
        with torch.inference_mode():
            return part(tensor)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(
            f"the network {type(net).__name__} cannot run on images of {side} x {side} pixels "
            f"({type(error).__name__}: {reason}): choose another image size, or correct the network"
        ) from error


def _broken(net: Network, how: str) -> RecipeError:
    return RecipeError(f"the network {type(net).__name__} does not keep to model/nets/base.py: {how}")
