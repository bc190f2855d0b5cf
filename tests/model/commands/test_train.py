"""The training command as people run it: in a process of its own."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

import model
from tests.limits import files_limited_to


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "model.train", "--device", "cpu", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@dataclass
class Ended:
    code: int
    out: str
    err: str


def finish(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=250)
    return Ended(process.returncode, out, err)


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a smoke run, from end to end."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    ended = finish(start("--recipe", "smoke", "--run", folder))
    assert ended.code == 0, ended.err
    assert f"wrote {folder / 'resnet18-synthetic'}" in ended.out
    assert "epoch 8/8, " in ended.out
    return folder


def test_smoke_learns_and_its_bundle_loads(smoke: Path) -> None:
    classifier = model.load(smoke / "resnet18-synthetic", device="cpu")
    card = classifier.card
    assert card.metrics.top1 > 0.5, "one of ten by chance"
    assert card.calibration.pictures == card.out_of_distribution.pictures == 50, "the held-out ones"
    assert (card.name, card.training.epochs, card.training.seed) == ("resnet18-synthetic", 8, 0)
    assert "# resnet18-synthetic" in (smoke / "resnet18-synthetic" / "README.md").read_text()
    assert len(list((smoke / "resnet18-synthetic" / "plots").glob("*.png"))) == 3
    with Image.open(smoke / "mistakes.png") as sheet:
        assert sheet.format == "PNG"


FAULTS = {
    "no data": (["--recipe", "quick", "--data", "{tmp}/none"], "no CIFAR-10 in .*none: add --download"),
    "unknown recipe": (["--recipe", "slow"],
                       "no recipe 'slow': choose one of smoke, quick, restart, polish, standard, best, article"),
    "unknown network": (["--recipe", "smoke", "--network", "vgg16"], "no network 'vgg16': choose one of resnet18, "),
    "bundle exists": (["--recipe", "smoke", "--out", "{smoke}/resnet18-synthetic"], "exists: choose another --out"),
    "run exists": (["--recipe", "smoke", "--run", "{smoke}", "--out", "{tmp}/new"], "holds a run already"),
    "another seed": (["--recipe", "smoke", "--run", "{smoke}", "--out", "{tmp}/new", "--resume", "--seed", "1"],
                     r"holds a run of recipe 'smoke' \(seed 0, "),
    "nothing to resume": (["--recipe", "smoke", "--resume"], "there is nothing to resume in"),
    "no weights": (["--recipe", "smoke", "--init", "{tmp}/none.pth"], "there is no file"),
    "unusable name": (["--recipe", "smoke", "--out", "{tmp}/my model"], "the name 'my model' will not do"),
}  # fmt: skip


@pytest.fixture(scope="module")
def answers(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Ended, Path]]]:
    """What the command says to each fault. The processes run side by side, because they mostly import."""
    before = everything_in(smoke)
    started = {}
    for fault, (arguments, _) in FAULTS.items():
        folder = tmp_path_factory.mktemp("fault")
        filled = [argument.format(tmp=folder, smoke=smoke) for argument in arguments]
        if "--run" not in filled:
            filled += ["--run", str(folder / "run")]
        started[fault] = (start(*filled), folder)
    yield {fault: (finish(process), folder) for fault, (process, folder) in started.items()}
    assert everything_in(smoke) == before


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence_and_leaves_nothing(answers: dict[str, tuple[Ended, Path]], fault: str) -> None:
    ended, folder = answers[fault]
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert re.search(FAULTS[fault][1], ended.err), ended.err
    assert everything_in(folder) == []


def test_a_full_disk_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    with files_limited_to(500_000):
        process = start("--recipe", "smoke", "--run", tmp_path / "run")
    ended = finish(process)
    assert ended.code == 1
    assert ended.err.startswith("error: cannot save the run to")
    assert ended.err.count("\n") == 1
    assert everything_in(tmp_path) == ["run"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_where_it_was(number: signal.Signals, smoke: Path, tmp_path: Path) -> None:
    arguments = ("--recipe", "smoke", "--run", tmp_path / "run")
    process = start(*arguments)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    process.send_signal(number)
    stopped = finish(process)
    assert stopped.code == 130, stopped.err
    assert stopped.err == "stopped; finished epochs are kept: go on with the same command and --resume\n"
    assert everything_in(tmp_path / "run") == ["checkpoint.pt"]
    resumed = finish(start(*arguments, "--resume"))
    assert resumed.code == 0, resumed.err
    assert "epoch 2/8" not in resumed.out
    # The same weights as those of the run that nobody stopped.
    versions = {
        json.loads((folder / "resnet18-synthetic" / "card.json").read_text())["files"]["model.safetensors"]
        for folder in (smoke, tmp_path / "run")
    }
    assert len(versions) == 1
