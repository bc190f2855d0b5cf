"""Saves the state of an unfinished run. A killed process or a full disk never leaves a partial file."""

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.torch_version import TorchVersion

from model.errors import SaveError, TrainingError, cannot_write


def check_folder(folder: Path) -> None:
    """Check that a run can be saved in a folder, before the work for it. Leaves no files.

    Raises:
        SaveError: the folder is a file, or cannot be made or written.
    """
    place = folder.absolute()
    try:
        existing = next(each for each in (place, *place.parents) if each.exists())
        tempfile.TemporaryDirectory(prefix=".run-", dir=existing).cleanup()
    except OSError as error:
        raise SaveError(f"cannot save the run in {folder} ({error.strerror}): choose another --run") from error


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`, and replace the old file in one step.

    Raises:
        SaveError: the disk is full or the folder cannot be written. The old file is unchanged.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise SaveError(cannot_write(path, error, "make it writable, then continue with --resume")) from error
    finally:  # also after Ctrl-C
        with contextlib.suppress(OSError):
            partial.unlink()


def load(path: Path) -> dict[str, Any]:
    """Read a state that `save` wrote, to the CPU. Only tensors and plain values are unpickled.

    Raises:
        TrainingError: there is no checkpoint, or it cannot be read.
    """
    try:
        with torch.serialization.safe_globals([TorchVersion]):  # in earlier checkpoints
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise TrainingError(f"there is nothing to resume in {path.parent}: start without --resume") from error
    except Exception as error:
        raise TrainingError(f"{path} is damaged or not a checkpoint: delete {path.parent} and start again") from error
    return state
