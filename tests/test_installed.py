"""The package without its extras, outside the repository."""

import shutil
from pathlib import Path

import pytest

from model.training.recipes import RECIPES
from tests.installed import install, run

TENFOLD = ("-c", "from app.cli.main import main; main()")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("installed") / "env")


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        ((*TENFOLD, "evaluate", "BUNDLE"), "torch", "train"),
        ((*TENFOLD, "quantize", "BUNDLE"), "nncf", "train"),
        ((*TENFOLD, "quantize", "BUNDLE", "--weights", "float16"), "torch", "train"),
        ((*TENFOLD, "train", "--help"), "torch", "train"),
        ((*TENFOLD, "networks"), "torch", "train"),
        ((*TENFOLD, "export", "BUNDLE"), "onnx", "onnx"),
        (("-m", "model.train", "--recipe", "smoke"), "torch", "train"),
        (("-m", "model.calibrate", "BUNDLE"), "torch", "train"),
    ],
)
def test_a_command_without_its_packages_names_the_extra(
    python: Path, command: tuple[str, ...], package: str, extra: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    done = run(python, tmp_path, *(tiny_bundle if word == "BUNDLE" else word for word in command))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    advice = f"run make install, or install tenfold[{extra}]"
    assert done.stderr == f"error: the package {package} is not installed: {advice}\n"
    assert not list(tmp_path.iterdir())


def test_the_recipes_are_listed(python: Path, tmp_path: Path) -> None:
    done = run(python, tmp_path, *TENFOLD, "recipes")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(RECIPES)
    assert "batch_size" in run(python, tmp_path, *TENFOLD, "recipes", "quick").stdout


def test_without_weights_the_message_says_where_they_come_from(python: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"")
    for arguments, code in (
        (("-m", "app"), 1),
        ((*TENFOLD, "serve", "--workers", "2"), 1),
        ((*TENFOLD, "classify", "cat.png"), 2),
    ):
        done = run(python, tmp_path, *arguments)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == 1
        assert "weights/resnet18-cifar10 does not exist: set TENFOLD_WEIGHTS (or --weights) to a folder" in done.stderr
        assert "tenfold train" in done.stderr
    done = run(python, tmp_path, *TENFOLD, "serve", "--weights", "none")
    assert "none/card.json cannot be read: name a weights folder that contains a card.json, as ten" in done.stderr


def test_without_the_training_code_the_command_says_so(tmp_path: Path) -> None:
    """As in the container."""
    python = install(tmp_path / "env")
    (code,) = (tmp_path / "env").glob("lib/python*/site-packages/model/commands")
    shutil.rmtree(code)
    done = run(python, tmp_path, *TENFOLD, "train", "--help")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: tenfold train is not part of this installation")
