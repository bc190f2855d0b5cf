"""The command on the CIFAR-10 test set as folders of PNGs: the card's figure, in little memory."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import model
from model.training.data import load_cifar10_test
from tests.app.running import ROOT, process

BUNDLE = ROOT / "weights" / "resnet18-cifar10"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(cifar10_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class."""
    labels = model.load(BUNDLE, engine="openvino", device="cpu").card.labels
    root = tmp_path_factory.mktemp("cifar10")
    for label in labels:
        (root / label).mkdir()
    pictures = load_cifar10_test(cifar10_root)
    for number, (pixels, label) in enumerate(zip(pictures.pixels.numpy(), pictures.labels.tolist(), strict=True)):
        Image.fromarray(pixels).save(root / labels[label] / f"{number:05}.png", compress_level=1)
    return root


def classified(folder: Path, *arguments: str) -> tuple[list[dict[str, str]], int]:
    """The rows, and the most memory that the process took, KiB."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
    out = folder.parent / f"{folder.name}.csv"
    command = [sys.executable, "-m", "app.classify", ".", "--output", str(out), *arguments]
    started = subprocess.Popen(command, cwd=folder, env={**kept, "PYTHONPATH": str(ROOT)})
    most = 0
    while started.poll() is None:
        # Not ru_maxrss: a child begins with its parent's.
        status = Path(f"/proc/{started.pid}/status").read_text()
        most = max([most, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))])
        time.sleep(0.05)
    assert started.returncode == 0
    with out.open() as file:
        return list(csv.DictReader(file)), most


def right(rows: list[dict[str, str]]) -> float:
    return sum(row["path"].split("/")[1] == row["label"] for row in rows) / len(rows)


def test_here_it_is_as_right_as_the_card_says(folder: Path) -> None:
    card = model.load(BUNDLE, engine="openvino", device="cpu").card
    assert card.openvino
    rows, most = classified(folder, "--engine=openvino", "--device=cpu")
    assert len(rows) == 10_000
    assert right(rows) == pytest.approx(card.openvino.top1, abs=0.0005)
    assert most < 300_000


def test_a_service_says_the_same(folder: Path, tmp_path: Path) -> None:
    settings = {"TENFOLD_PORT": "0", "TENFOLD_ENGINE": "openvino", "TENFOLD_DEVICE": "cpu", "TENFOLD_DRAIN_DELAY": "0"}
    with process(settings, tmp_path / "log") as running:
        running.wait_ready()
        there, most = classified(folder / "cat", f"--url=http://127.0.0.1:{running.port}")
        running.popen.terminate()
        assert running.exit_code() == 0
    here, _ = classified(folder / "cat", "--engine=openvino", "--device=cpu")
    assert there == here
    assert len(here) == 1000
    assert most < 150_000
