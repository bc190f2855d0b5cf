"""Initial weights from a file, such as torchvision's for ImageNet."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.card import WEIGHTS_FILE
from model.errors import RecipeError
from model.nets.base import Network


@dataclass(frozen=True, slots=True)
class Init:
    """An initial state dict and the SHA-256 of its file."""

    state: dict[str, Tensor]
    sha256: str


def read_state_dict(path: Path, *, option: str = "--init") -> Init:
    """Read a state dict from a bundle, from a .safetensors file, or from one that torch.save wrote.

    Args:
        path: of the bundle or file.
        option: of the command, for messages.

    Raises:
        RecipeError: the file is missing, or is not a state dict of tensors.
    """
    if path.is_dir():
        path = path / WEIGHTS_FILE
    if not path.is_file():
        raise RecipeError(f"there is no file {path}: give {option} a bundle or a state dict (.pth or .safetensors)")
    safe = path.suffix == ".safetensors"
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        state = load_file(path) if safe else torch.load(path, "cpu", weights_only=True)
    except OSError as error:
        raise _refusal(path, f"it cannot be read: {error.strerror}", option) from error
    except Exception as error:  # the messages of torch.load are pages long and advise to unpickle any object
        reason = (
            "it is damaged or was not written by safetensors"
            if safe
            else "it is damaged, was not written by torch.save, or holds objects other than tensors"
        )
        raise _refusal(path, reason, option) from error
    if isinstance(state, dict) and "net" in state:  # a checkpoint of model.training.loop
        state = state["net"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _refusal(path, "it holds something else", option)
    return Init(state, sha256)


def start_from(net: Network, state: dict[str, Tensor], *, option: str = "--init", other_classes: bool = True) -> None:
    """Load a state dict into `net`.

    A name in front of all keys, such as "module." of DistributedDataParallel, may differ.

    Args:
        net: the network.
        state: the state dict.
        option: that named it, for the error.
        other_classes: whether the classifier keeps its weights if the state dict has one of another size, or none.

    Raises:
        RecipeError: the state dict belongs to another network.
    """
    own = net.state_dict()
    renamed = {_prefix(own) + key.removeprefix(_prefix(state)): value for key, value in state.items()}
    state = max(state, renamed, key=lambda each: len(each.keys() & own.keys()))
    head = net.classifier_keys() if other_classes else frozenset()
    if any(key in state and state[key].shape != own[key].shape for key in head):
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


def _refusal(path: Path, reason: str, option: str) -> RecipeError:
    return RecipeError(f"{path} is not a state dict ({reason}): give {option} a .pth or .safetensors file")


def _prefix(state: Mapping[str, Tensor]) -> str:
    """The first name of all keys with its dot, or nothing if the keys have different ones."""
    names = {key.partition(".")[0] + "." for key in state}
    return names.pop() if len(names) == 1 else ""
