import csv
import subprocess
import sys
from pathlib import Path

import pytest

from model.errors import SaveError
from model.training.history import EVENTS_FILE, write_history
from tests.limits import files_limited_to

RECORDS = [
    {"epoch": 1, "side": 32, "lr": 0.1, "train_loss": 2.5, "loss": 2.25, "accuracy": 0.125, "seconds": 1.5},
    {"epoch": 2, "side": 32, "lr": 0.05, "train_loss": 1.5, "loss": 1.25, "accuracy": 0.5, "seconds": 1.25},
]


def write_both(folder: Path) -> None:
    for count in (1, 2):
        write_history(folder, RECORDS[:count])


def test_there_is_one_row_per_epoch(tmp_path: Path) -> None:
    write_both(tmp_path)
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows == RECORDS


def test_tensorboard_reads_the_events(tmp_path: Path) -> None:
    write_both(tmp_path)
    program = (  # in a process of its own, because TensorBoard imports what it finds
        "import sys\n"
        "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator\n"
        "events = EventAccumulator(sys.argv[1]).Reload()\n"
        "print([(event.step, event.value) for event in events.Scalars('accuracy')], sorted(events.scalars.Keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / EVENTS_FILE], capture_output=True, check=True)
    names = ["accuracy", "loss", "lr", "seconds", "side", "train_loss"]
    assert done.stdout.decode() == f"[(1, 0.125), (2, 0.5)] {names}\n"


def test_a_full_disk_is_an_error_and_keeps_the_earlier_rows(tmp_path: Path) -> None:
    write_history(tmp_path, RECORDS[:1])
    before = (tmp_path / "history.csv").read_bytes()
    with files_limited_to(60), pytest.raises(SaveError, match="make it writable, then continue with --resume"):
        write_history(tmp_path, RECORDS)
    assert (tmp_path / "history.csv").read_bytes() == before
    assert not (tmp_path / "history.partial").exists()
