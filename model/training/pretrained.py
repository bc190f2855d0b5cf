"""Initial weights from a file, such as torchvision's for ImageNet."""

import codecs
import hashlib
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.bundle import CARD_FILE
from model.card import WEIGHTS_FILE, read_card
from model.errors import RecipeError
from model.nets.base import Network

_EMA = re.compile(r"(^|[._/])ema([._/]|$)")

_scalar = np.float64(0).__reduce__()[0]  # what NumPy pickles its numbers with
# Plain values that others save beside the weights: the options of torchvision and timm, and numbers of NumPy. The
# functions only make these values.
_PLAIN: list[Any] = [
    Namespace,
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    _scalar,
    (_scalar, "numpy.core.multiarray.scalar"),  # NumPy 1
    codecs.encode,
]


@dataclass(frozen=True, slots=True)
class Init:
    """An initial state dict, the SHA-256 of its file, and the classes of its bundle; None if they are not known."""

    state: dict[str, Tensor]
    sha256: str
    labels: tuple[str, ...] | None = None


def read_state_dict(path: Path, *, option: str = "--init") -> Init:
    """Read a state dict from a bundle, from a .safetensors file, or from one that torch.save wrote.

    A state dict inside other values is found, such as that of {"epoch": 9, "model": state}. Of several, the largest
    that is no moving average is taken. Only tensors and plain values are unpickled.

    Args:
        path: of the bundle or file.
        option: of the command, for messages.

    Raises:
        RecipeError: the file is missing, or is not a state dict of tensors.
    """
    labels = None
    if path.is_dir():
        card, path = path / CARD_FILE, path / WEIGHTS_FILE
        labels = tuple(read_card(card).labels) if card.exists() else None
    if not path.is_file():
        raise RecipeError(f"there is no file {path}: give {option} a bundle or a state dict (.pth or .safetensors)")
    safe = path.suffix == ".safetensors"
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        with torch.serialization.safe_globals(_PLAIN):
            found = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise _refusal(path, f"it cannot be read: {error.strerror}", option) from error
    except Exception as error:  # the messages of torch.load are pages long and advise to unpickle any object
        reason = (
            "it is damaged or was not written by safetensors"
            if safe
            else "it is damaged, was not written by torch.save, or holds objects such as the network itself"
        )
        raise _refusal(path, reason, option) from error
    states = list(_states(found))
    if not states:
        raise _refusal(path, "it holds something else", option)
    _, state = max(states, key=lambda each: (not _EMA.search(each[0].lower()), len(each[1])))
    return Init(state, sha256, labels)


def _states(value: object, name: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors of each dict in a value, at any depth, and where it is."""
    if isinstance(value, Mapping):
        tensors = {key: each for key, each in value.items() if isinstance(key, str) and isinstance(each, Tensor)}
        if tensors:
            yield name, tensors
        for key, each in value.items():
            yield from _states(each, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _states(each, name)


def start_from(
    net: Network,
    state: dict[str, Tensor],
    *,
    option: str = "--init",
    other_classes: bool = True,
    new_classifier: bool = False,
) -> bool:
    """Load a state dict into `net`.

    Names in front of all keys of the network, such as "module." of DistributedDataParallel or "model.backbone.", may
    differ. Then the keys of other parts, such as those of a loss, are left out.

    Args:
        net: the network.
        state: the state dict.
        option: that named it, for the error.
        other_classes: whether the classifier keeps its weights if the state dict has one of another size, or none.
        new_classifier: whether it keeps them in any case, because its classes are others.

    Returns:
        Whether the classifier has the weights of the state dict.

    Raises:
        RecipeError: the state dict belongs to another network.
    """
    own = net.state_dict()
    ours = _prefix(own)
    theirs = _prefix_of([key.removeprefix(ours) for key in own], state)
    renamed = {ours + key.removeprefix(theirs): value for key, value in state.items() if key.startswith(theirs)}
    state = max(state, renamed, key=lambda each: len(each.keys() & own.keys()))
    head = net.classifier_keys() if other_classes else frozenset()
    if new_classifier or any(key in state and state[key].shape != own[key].shape for key in head):
        state = {key: value for key, value in state.items() if key not in head}
    wrong = sorted((own.keys() ^ state.keys()) - head)
    wrong += [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    # Old checkpoints lack these counters, and nothing reads them.
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise RecipeError(
            f"{option} belongs to another network ({len(wrong)} tensors differ, such as {wrong[0]}): "
            "choose its --network and --stem"
        )
    net.load_state_dict(state, strict=False)
    return head <= state.keys()


def _refusal(path: Path, reason: str, option: str) -> RecipeError:
    return RecipeError(f"{path} is not a state dict ({reason}): give {option} a .pth or .safetensors file")


def _prefix(state: Mapping[str, Tensor]) -> str:
    """The first name of all keys with its dot, or nothing if the keys have different ones."""
    names = {key.partition(".")[0] + "." for key in state}
    return names.pop() if len(names) == 1 else ""


def _prefix_of(names: Collection[str], state: Mapping[str, Tensor]) -> str:
    """What precedes most of the names in the keys of a state dict, which is nothing or ends with a dot."""
    found = Counter(
        key.removesuffix(name)
        for key in state
        for name in names
        if key.endswith(name) and (len(key) == len(name) or key.removesuffix(name).endswith("."))
    )
    return min(found, key=lambda prefix: (-found[prefix], len(prefix)), default="")
