"""Initial weights from a file, such as torchvision's for ImageNet."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from model.errors import RecipeError
from model.nets.base import Network


@dataclass(frozen=True, slots=True)
class Init:
    """An initial state dict and the SHA-256 of its file."""

    state: dict[str, Tensor]
    sha256: str


def read_state_dict(path: Path) -> Init:
    """Read a state dict from a .safetensors file, or from one that torch.save wrote.

    Raises:
        RecipeError: the file is missing, or is not a state dict of tensors.
    """
    if not path.is_file():
        raise RecipeError(f"there is no file {path}: give --init a state dict (.pth or .safetensors)")
    try:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        if isinstance(state, dict) and "net" in state:  # a checkpoint of model.training.loop
            state = state["net"]
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise TypeError("it holds something else")
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"{path} is not a state dict ({reason}): give --init a .pth or .safetensors file") from error
    return Init(state, sha256)


def start_from(net: Network, state: dict[str, Tensor]) -> None:
    """Load a state dict into `net`.

    The classifier keeps its random weights if the state dict has one of another size, or none.

    Raises:
        RecipeError: the state dict belongs to another network.
    """
    own = net.state_dict()
    head = net.classifier_keys()
    if any(key in state and state[key].shape != own[key].shape for key in head):
        state = {key: value for key, value in state.items() if key not in head}
    wrong = sorted((own.keys() ^ state.keys()) - head)
    wrong += [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    # Old checkpoints lack these counters, and nothing reads them.
    wrong = [key for key in wrong if not key.endswith("num_batches_tracked")]
    if wrong:
        raise RecipeError(
            f"--init belongs to another network ({len(wrong)} tensors differ, such as {wrong[0]}): "
            "choose its --network and --stem"
        )
    net.load_state_dict(state, strict=False)
