"""The command classifies the CIFAR-10 test set as folders of PNGs, with the card's accuracy and little memory."""

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
    """The test set with a folder per class."""
    labels = model.load(BUNDLE, engine="openvino", device="cpu").card.labels
    root = tmp_path_factory.mktemp("cifar10")
    for label in labels:
        (root / label).mkdir()
    images = load_cifar10_test(cifar10_root)
    for number, (pixels, label) in enumerate(zip(images.pixels.numpy(), images.labels.tolist(), strict=True)):
        Image.fromarray(pixels).save(root / labels[label] / f"{number:05}.png", compress_level=1)
    return root


def classified(folder: Path, *arguments: str) -> tuple[list[dict[str, str]], int]:
    """The rows, and the peak memory of the process in KiB."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
    out = folder.parent / f"{folder.name}.csv"
    command = [sys.executable, "-m", "app.classify", ".", "--output", str(out), *arguments]
    child = subprocess.Popen(command, cwd=folder, env={**kept, "PYTHONPATH": str(ROOT)})
    peak = 0
    while child.poll() is None:
        # Not ru_maxrss: a child inherits its parent's.
        status = Path(f"/proc/{child.pid}/status").read_text()
        peak = max([peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))])
        time.sleep(0.05)
    assert child.returncode == 0
    with out.open() as file:
        return list(csv.DictReader(file)), peak


def accuracy(rows: list[dict[str, str]]) -> float:
    return sum(row["path"].split("/")[1] == row["label"] for row in rows) / len(rows)


def test_local_accuracy_is_that_of_the_card(folder: Path) -> None:
    card = model.load(BUNDLE, engine="openvino", device="cpu").card
    assert card.openvino
    rows, peak = classified(folder, "--engine=openvino", "--device=cpu")
    assert len(rows) == 10_000
    assert accuracy(rows) == pytest.approx(card.openvino.top1, abs=0.0005)
    assert peak < 300_000


def test_a_service_gives_the_same_results(folder: Path, tmp_path: Path) -> None:
    settings = {"TENFOLD_PORT": "0", "TENFOLD_ENGINE": "openvino", "TENFOLD_DEVICE": "cpu", "TENFOLD_DRAIN_DELAY": "0"}
    with process(settings, tmp_path / "log") as running:
        running.wait_ready()
        remote, peak = classified(folder / "cat", f"--url=http://127.0.0.1:{running.port}")
        running.popen.terminate()
        assert running.exit_code() == 0
    local, _ = classified(folder / "cat", "--engine=openvino", "--device=cpu")
    assert remote == local
    assert len(local) == 1000
    assert peak < 150_000
