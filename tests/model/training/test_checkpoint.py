from pathlib import Path

import pytest
import torch

from model.errors import SaveError, TrainingError
from model.training import checkpoint
from tests.limits import files_limited_to


def test_tensors_and_plain_values_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "new" / "checkpoint.pt"
    checkpoint.save(path, {"net": {"w": torch.arange(3)}, "sizes": ((0, 16), (5, 32)), "seconds": 1.5, "ema": None})
    state = checkpoint.load(path)
    assert torch.equal(state["net"]["w"], torch.arange(3))
    assert (state["sizes"], state["seconds"], state["ema"]) == (((0, 16), (5, 32)), 1.5, None)
    assert [path.name for path in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk_leaves_the_old_checkpoint_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"epoch": 1})
    with (
        files_limited_to(10_000),
        pytest.raises(SaveError, match=r"cannot write .*: make it writable, .*--resume"),
    ):
        checkpoint.save(path, {"epoch": 2, "net": torch.zeros(10_000)})
    assert checkpoint.load(path) == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_folder_that_cannot_be_created_is_a_save_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SaveError, match=r"cannot write .* \(Not a directory\): make it writable, "):
        checkpoint.save(tmp_path / "file" / "run" / "checkpoint.pt", {})


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"there is nothing to resume in .*: start without --resume"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_partial_checkpoint_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"net": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is damaged"):
        checkpoint.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(TrainingError, match="is damaged or not a checkpoint"):
        checkpoint.load(path)
