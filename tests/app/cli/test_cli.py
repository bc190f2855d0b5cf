"""tenfold, the command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import httpx
import pytest

from app.cli.classify.command import main as classify
from app.cli.main import serve
from model import MAX_VIEWS, DeviceName, EngineName
from tests.app.fakes import picture
from tests.app.running import ROOT, process


def tenfold(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", *arguments],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_help_names_the_commands() -> None:
    done = tenfold("--help")
    assert done.returncode == 0
    for name in ("classify", "serve", "train", "evaluate", "quantize"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"], ["serve", "--help"]])
def test_help_waits_for_no_runtime(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from app.cli.main import app\n"
        "try:\n"
        f"    app({arguments}, prog_name='tenfold')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "loaded = {'torch', 'openvino', 'numpy', 'PIL', 'fastapi', 'httpx'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120, stdout=subprocess.DEVNULL)


def test_the_options_offer_what_the_settings_take() -> None:
    for command in (classify, serve):
        hints = command.__annotations__
        assert set(get_args(get_args(get_args(hints["engine"])[0])[0])) == set(get_args(EngineName))
        assert set(get_args(get_args(get_args(hints["device"])[0])[0])) == set(get_args(DeviceName))
    assert classify.__annotations__["views"].__metadata__[0].max == MAX_VIEWS


def test_training_has_its_own_options_and_help() -> None:
    done = tenfold("quantize", "--help")
    assert done.returncode == 0
    assert "tenfold quantize [OPTIONS]" in done.stdout
    assert "--weights" in done.stdout
    done = tenfold("evaluate", "no-such", "--device", "cpu")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no-such/card.json ")


def test_without_what_training_needs_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    done = tenfold("train", "--help", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: tenfold train needs what is installed for training (No module named 'torch')")
    assert done.stderr.count("\n") == 1


def test_it_serves_from_anywhere_with_its_options(tmp_path: Path) -> None:
    """With the shipped weights, which are found beside the code."""
    program = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); sys.path.insert(0, {str(ROOT)!r})\n"
        "from app.cli.main import main; main()"
    )
    arguments = ["-c", program, "serve", "--port", "0", "--device", "cpu", "--threads", "1"]
    with process({"TENFOLD_PORT": "1", "TENFOLD_DRAIN_DELAY": "0"}, tmp_path / "log", arguments=arguments) as running:
        running.wait_ready()
        answer = httpx.post(f"http://127.0.0.1:{running.port}/predict", content=picture(), timeout=30)
        assert answer.json()["model"]["name"] == "resnet18-cifar10"
        running.popen.terminate()
        assert running.exit_code() == 0


def test_a_wrong_option_of_serve_is_told_of_as_its_setting() -> None:
    done = tenfold("serve", "--port", "70000")
    assert done.returncode == 2
    assert done.stderr.startswith("error: TENFOLD_PORT: ")
