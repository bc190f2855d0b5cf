"""The program `tenfold`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import httpx
import pytest
from typer.testing import CliRunner

from app import __version__
from app.cli.classify.command import main as classify
from app.cli.main import app, serve
from model import MAX_VIEWS, DeviceName, EngineName
from tests.app.fakes import image_file
from tests.app.running import ROOT, process


def tenfold(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m app.cli.main` without the settings of this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
    return subprocess.run(
        [sys.executable, "-m", "app.cli.main", *arguments],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"], ["serve", "--help"]])
def test_help_imports_no_large_package(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from app.cli.main import app\n"
        "try:\n"
        f"    app({arguments}, prog_name='tenfold')\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        "loaded = {'torch', 'openvino', 'numpy', 'PIL', 'fastapi', 'httpx', 'rich'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120, stdout=subprocess.PIPE, text=True
    )
    if arguments == ["--help"]:
        for name in ("classify", "serve", "train", "recipes", "evaluate", "quantize", "export", "networks"):
            assert f"\n  {name} " in done.stdout
        assert "..." not in done.stdout.partition("Commands:")[2], "summaries are not cut off"


def test_the_version_is_printed() -> None:
    assert tenfold("--version").stdout == f"tenfold {__version__}\n"


def test_options_accept_the_values_of_the_settings() -> None:
    for command in (classify, serve):
        hints = command.__annotations__
        assert set(get_args(get_args(get_args(hints["engine"])[0])[0])) == set(get_args(EngineName))
        assert set(get_args(get_args(get_args(hints["device"])[0])[0])) == set(get_args(DeviceName))
    assert classify.__annotations__["views"].__metadata__[0].max == MAX_VIEWS


def test_help_of_the_module_shows_the_defaults() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app.classify", "--help"], cwd=ROOT, check=True, timeout=120, capture_output=True
    )
    assert b"[default: 20000000]" in done.stdout


def test_training_commands_have_their_own_options_and_help() -> None:
    done = CliRunner().invoke(app, ["quantize", "--help"], prog_name="tenfold")
    assert done.exit_code == 0
    assert "tenfold quantize [OPTIONS]" in done.stdout
    assert "--weights" in done.stdout
    done = CliRunner().invoke(app, ["evaluate", "no-such", "--device", "cpu"], prog_name="tenfold")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: no-such/card.json ")


def test_it_serves_from_any_folder_with_its_options(tmp_path: Path) -> None:
    """With the shipped weights, which are found relative to the code."""
    program = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); sys.path.insert(0, {str(ROOT)!r})\n"
        "from app.cli.main import main; main()"
    )
    arguments = ["-c", program, "serve", "--port", "0", "--device", "cpu", "--threads", "1"]
    with process({"TENFOLD_PORT": "1", "TENFOLD_DRAIN_DELAY": "0"}, tmp_path / "log", arguments=arguments) as running:
        running.wait_ready()
        response = httpx.post(f"http://127.0.0.1:{running.port}/predict", content=image_file(), timeout=30)
        assert response.json()["model"]["name"] == "resnet18-cifar10"
        running.popen.terminate()
        assert running.exit_code() == 0


def test_options_for_bundles_override_both_settings() -> None:
    """The bundles do not exist, so each command ends and names the first one."""
    for arguments, environment, named in (
        (["--weights", "a"], {"TENFOLD_MODELS": "b,c"}, "a"),
        (["--models", "a,b"], {"TENFOLD_WEIGHTS": "c"}, "a"),
        ([], {"TENFOLD_MODELS": "b,c"}, "b"),
    ):
        done = tenfold("serve", "--port", "0", *arguments, TENFOLD_LOG_FORMAT="text", **environment)
        assert done.returncode == 1
        assert f"the models cannot be loaded: {named}/card.json cannot be read: name a weights folder" in done.stderr
    done = tenfold("serve", "--weights", "a", "--models", "b,c")
    assert done.returncode == 2
    assert done.stderr.startswith("error: TENFOLD_WEIGHTS and TENFOLD_MODELS are both set: ")


def test_an_invalid_setting_of_serve_is_reported_by_the_name_that_the_user_gave() -> None:
    for arguments, name in ((["--port", "70000"], "--port"), (["--host", "a"], "TENFOLD_PORT")):
        done = tenfold("serve", *arguments, TENFOLD_PORT="70000")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {name}: Input should be less than or equal to 65535")
