"""The training command, in a process of its own, and the function behind it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import model
from model import ModelError
from model.card import read_card
from model.commands import train
from model.commands.exits import tenfold
from model.engines.torch import has_bfloat16
from model.training.history import EVENTS_FILE, HISTORY_FILE
from model.training.recipes import RECIPES, recipe_named
from model.training.run import train_bundle
from tests.app.running import default_sigint
from tests.limits import files_limited_to
from tests.model.training.data.images import write_classes


def start(*arguments: str | Path, environment: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "model.train", "--device", "cpu", *map(str, arguments)]
    with default_sigint():
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )


@dataclass
class Ended:
    code: int
    out: str
    err: str


def finish(process: subprocess.Popen[str]) -> Ended:
    try:
        out, err = process.communicate(timeout=250)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out, err)


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> list[str | Path]:
    """Options for two outliers in a folder, one of which is not used."""
    folder = tmp_path_factory.mktemp("outliers")
    for name in ("wall", "bus"):
        (folder / name).mkdir()
        Image.new("RGB", (40, 40), "brown").save(folder / name / "image.png")
    return ["--outliers", folder, "--outliers-without", "bus"]


@pytest.fixture(scope="module")
def smoke(outliers: list[str | Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete smoke run with outliers."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    ended = finish(start("--recipe", "smoke", "--run", folder, *outliers))
    assert ended.code == 0, ended.err
    assert "outliers: 1, skipped files: 0\n" in ended.out
    assert f"wrote {folder / 'resnet18-synthetic'}" in ended.out
    assert "epoch 8/8, " in ended.out
    assert re.search(r"airplane\W+[\d.]+%\W+[\d.]+\W+10 ", ended.out), "accuracy, F1 score and test images of a class"
    *_, serve, quantize = ended.out.splitlines()
    assert serve == f"serve it: {tenfold()} serve --weights {folder / 'resnet18-synthetic'}"
    assert quantize.endswith(f" quantize {folder / 'resnet18-synthetic'} --data data")
    return folder


def test_the_smoke_recipe_learns_and_its_bundle_loads(smoke: Path) -> None:
    classifier = model.load(smoke / "resnet18-synthetic", device="cpu")
    card = classifier.card
    assert card.metrics.top1 > 0.5, "chance is 0.1"
    assert card.calibration.pictures == card.out_of_distribution.pictures == 50, "held-out images"
    assert (card.name, card.training.epochs, card.training.seed) == ("resnet18-synthetic", 8, 0)
    assert "# resnet18-synthetic" in (smoke / "resnet18-synthetic" / "README.md").read_text()
    assert len(list((smoke / "resnet18-synthetic" / "plots").glob("*.png"))) == 3
    assert card.training.outliers is not None
    assert (card.training.outliers.images, card.training.outliers.without) == (1, ["bus"])
    for name in ("batch.png", "mistakes.png"):
        with Image.open(smoke / name) as sheet:
            assert sheet.format == "PNG"


def test_a_network_learns_from_a_bundle(smoke: Path, tmp_path: Path) -> None:
    teacher = smoke / "resnet18-synthetic"
    options = ["--recipe", "smoke", "--epochs", "1", "--limit", "60", "--network", "resnet9", "--set", "amp=true"]
    ended = finish(start(*options, "--run", tmp_path, "--teacher", teacher))
    assert ended.code == 0, ended.err
    assert "teacher: resnet18-synthetic, in " in ended.out
    emulated = not has_bfloat16(torch.device("cpu"))
    assert ("training in float32, because this CPU has no bfloat16 instructions\n" in ended.out) is emulated
    card = read_card(tmp_path / "resnet9-synthetic" / "card.json")
    assert card.architecture.name == "resnet9"
    assert card.training.teacher is not None
    assert card.training.teacher.sha256 == read_card(teacher / "card.json").files["model.safetensors"]


def test_the_weights_are_averaged_with_others(smoke: Path, tmp_path: Path) -> None:
    """With a share of 1 the bundle has the weights of the other one."""
    other = smoke / "resnet18-synthetic"
    options = ["--recipe", "smoke", "--epochs", "1", "--limit", "60", "--seed", "1", "--average-share", "1"]
    ended = finish(start(*options, "--run", tmp_path, "--average-with", other))
    assert ended.code == 0, ended.err
    average = read_card(tmp_path / "resnet18-synthetic" / "card.json").training.average
    assert average is not None
    assert (average.sha256, average.share) == (read_card(other / "card.json").files["model.safetensors"], 1)
    mine, others = (load_file(each / "model.safetensors") for each in (tmp_path / "resnet18-synthetic", other))
    differ = {name for name, tensor in others.items() if tensor.is_floating_point() and not mine[name].equal(tensor)}
    assert differ <= {"fc.bias"}, "it is corrected after the average"
    assert "which have a share of 1 |" in (tmp_path / "resnet18-synthetic" / "README.md").read_text()


TRAIN_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({"recipe": "quick", "data": "{tmp}/none"}, "no CIFAR-10 in .*none: unpack .* tenfold train --download"),
    "unknown network": ({"network": "vgg16"}, "no network 'vgg16': "),
    "bundle exists": ({"out": "{smoke}/resnet18-synthetic"}, "exists: choose another --out"),
    "no place for the bundle": ({"out": "{smoke}/mistakes.png/new"}, "cannot write .*mistakes.png/new"),
    "unusable run": ({"run": "{smoke}/mistakes.png"}, "cannot save the run in .*mistakes.png .*: choose another --run"),
    "run exists": ({"run": "{smoke}"}, "contains a run already"),
    "another seed": ({"run": "{smoke}", "resume": True, "seed": 1}, r"contains a run of recipe 'smoke' \(seed 0, "),
    "nothing to resume": ({"resume": True}, "there is nothing to resume in"),
    "no initial weights": ({"recipe": "transfer"}, "the recipe 'transfer' starts from trained weights: give --init"),
    "no initial weights of an earlier run": ({"recipe": "polish"}, "the recipe 'polish' starts from trained weights"),
    "no weights": ({"init": "{tmp}/none.pth"}, "there is no file"),
    "no outliers": ({"outliers": "{tmp}/none"}, "the folder .*none does not exist: give --outliers a folder"),
    "nothing to average with": ({"average_with": "{tmp}/none"}, "none: give --average-with a bundle"),
    "no teacher": ({"teacher": "{tmp}/none"}, "none/card.json"),
    "held-out images of CIFAR-10": (
        {"data": "folder:{tmp}", "recipe": "smoke", "changed": ("holdout",)},
        "--set holdout has no effect on a folder of images: set holdout_share",
    ),
    "unusable name": ({"out": "{tmp}/my model"}, "the name 'my model' is not allowed"),
}


@pytest.mark.parametrize("fault", TRAIN_FAULTS)
def test_a_fault_is_reported_and_leaves_no_files(fault: str, smoke: Path, tmp_path: Path) -> None:
    options = {"data": "data", "run": "{tmp}/run", "out": "{tmp}/new", "recipe": "smoke"} | TRAIN_FAULTS[fault][0]
    data, run, out = (Path(options[key].format(tmp=tmp_path, smoke=smoke)) for key in ("data", "run", "out"))
    init = Path(options["init"].format(tmp=tmp_path)) if "init" in options else None
    outliers = Path(options["outliers"].format(tmp=tmp_path)) if "outliers" in options else None
    teacher = Path(options["teacher"].format(tmp=tmp_path)) if "teacher" in options else None
    average_with = Path(options["average_with"].format(tmp=tmp_path)) if "average_with" in options else None
    recipe = recipe_named(options["recipe"])
    recipe = replace(recipe, network=options.get("network", recipe.network), changed=options.get("changed", ()))
    seed, resume = options.get("seed", 0), options.get("resume", False)
    before = everything_in(smoke)
    with pytest.raises(ModelError, match=TRAIN_FAULTS[fault][1]):
        train_bundle(
            recipe,
            data=data,
            run=run,
            out=out,
            init=init,
            outliers=outliers,
            teacher=teacher,
            average_with=average_with,
            device="cpu",
            seed=seed,
            resume=resume,
        )
    assert everything_in(tmp_path) == []
    assert everything_in(smoke) == before


def test_names_that_the_terminal_cannot_show_end_no_command() -> None:
    code = "from model.commands.exits import exit_codes\nwith exit_codes(): print('wrote caf\\udce9 \\u732b')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == ("wrote caf\\udce9 \\u732b\n", "")


def test_the_command_reports_an_error_in_one_sentence(tmp_path: Path) -> None:
    ended = finish(start("--recipe", "slow", "--run", tmp_path / "run"))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == f"error: there is no recipe 'slow': choose one of {', '.join(RECIPES)}\n"
    assert everything_in(tmp_path) == []


def test_without_a_compiler_the_network_is_trained(tmp_path: Path) -> None:
    options = ["--recipe", "smoke", "--set", "compile=true", "--epochs", "1", "--limit", "50"]
    environment = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = finish(start(*options, "--run", tmp_path / "run", environment=environment))
    assert ended.code == 0, ended.err
    (line,) = (line for line in ended.out.splitlines() if "torch.compile" in line)
    assert line.startswith("training without torch.compile, which cannot run here: ")
    assert ended.err == ""
    assert read_card(tmp_path / "run" / "resnet18-synthetic" / "card.json").training.recipe["compile"] is False


def test_the_help_shows_the_defaults() -> None:
    ended = finish(start("--help"))
    assert ended.code == 0, ended.err
    text = " ".join(ended.out.split())
    assert text.startswith("Usage: python -m model.train [OPTIONS]")
    assert "Folder of the checkpoint. [default: runs/RECIPE]" in text


@pytest.fixture
def sigterm() -> Iterator[None]:
    """The handler of SIGTERM, which the command replaces, is restored."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize(
    ("option", "value", "needed"),
    [
        ("--outliers-without", "bus", "--outliers"),
        ("--set outlier_weight", "0.5", "--outliers"),
        ("--set teacher_temperature", "2", "--teacher"),
        ("--average-share", "0.5", "--average-with"),
    ],
)
def test_an_option_without_the_one_that_it_is_for_is_refused(
    option: str, value: str, needed: str, tmp_path: Path
) -> None:
    app = typer.Typer()
    app.command()(train.main)
    given = [
        *f"{option}={value}".split(),
        "--recipe",
        "smoke",
        "--init",
        f"{tmp_path}/none",
        "--run",
        f"{tmp_path}/run",
    ]
    ended = CliRunner().invoke(app, given)
    assert (ended.exit_code, ended.stdout) == (1, "")
    assert ended.stderr == f"error: {option} has no effect without {needed}: give both or neither\n"
    assert everything_in(tmp_path) == []


def test_a_full_disk_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    with files_limited_to(500_000):
        process = start("--recipe", "smoke", "--run", tmp_path / "run")
    ended = finish(process)
    assert ended.code == 1
    assert ended.err.startswith("error: cannot write ")
    assert ended.err.count("\n") == 1
    assert everything_in(tmp_path) == ["run", "run/batch.png"]


def stopped_after(report: str, number: signal.Signals, *arguments: str | Path) -> Ended:
    """Run the command, and send it a signal when it has printed a line that begins with `report`."""
    process = start(*arguments)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(report):
            process.send_signal(number)
    return replace(finish(process), out="".join(lines))


def is_stopped(ended: Ended, run: Path) -> None:
    assert ended.code == 130, ended.err
    assert ended.err == f"stopped; the progress is saved in {run}: continue with the same command and --resume\n"
    assert everything_in(run) == ["batch.png", "checkpoint.pt", EVENTS_FILE, HISTORY_FILE]


def test_a_run_can_be_stopped_and_resumed(tmp_path: Path) -> None:
    arguments = ("--recipe", "smoke", "--run", tmp_path / "run")
    is_stopped(stopped_after("epoch 1/", signal.SIGTERM, *arguments), tmp_path / "run")
    resumed = stopped_after("epoch 2/", signal.SIGINT, *arguments, "--resume")
    is_stopped(resumed, tmp_path / "run")
    assert "epoch 2/8" in resumed.out
    assert "epoch 1/8" not in resumed.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_before_its_first_epoch_ends_says_that_nothing_is_saved(
    number: signal.Signals, tmp_path: Path
) -> None:
    images = write_classes(tmp_path / "images", ["cat", "dog"], 300)
    arguments = ("--recipe", "quick", "--data", f"folder:{images}", "--cache", tmp_path / "cache")
    ended = stopped_after("decoding ", number, *arguments, "--run", tmp_path / "run")
    assert ended.code == 130, ended.err
    assert ended.err == "stopped; nothing is saved, because no epoch was finished: start again with the same command\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_run(
    smoke: Path, outliers: list[str | Path], tmp_path: Path
) -> None:
    arguments = ("--recipe", "smoke", "--run", tmp_path / "run", *outliers)
    is_stopped(stopped_after("epoch 4/", signal.SIGINT, *arguments), tmp_path / "run")
    resumed = finish(start(*arguments, "--resume"))
    assert resumed.code == 0, resumed.err
    assert "epoch 4/8" not in resumed.out
    weights = {
        (folder / "resnet18-synthetic" / "model.safetensors").read_bytes() for folder in (smoke, tmp_path / "run")
    }
    assert len(weights) == 1
