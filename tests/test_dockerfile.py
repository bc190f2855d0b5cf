"""The image's contents without building it: what .dockerignore lets through suffices for the Dockerfile's commands."""

import json
import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.app.another_program import another_program
from tests.app.running import ROOT
from tests.shipped import NAMES


def rules_of(name: str) -> list[str]:
    """The rules of an ignore file, without its comments."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with app/ and model/ as the build context has them."""
    rules = rules_of(".dockerignore")
    excluded = [rule.removeprefix("**/") for rule in rules if rule != "*" and not rule.startswith("!")]

    def ignored(folder: str, names: list[str]) -> list[str]:
        paths = {name: (Path(folder) / name).relative_to(ROOT).as_posix() for name in names}
        return [name for name in names if any(fnmatch(text, rule) for rule in excluded for text in (name, paths[name]))]

    context = tmp_path_factory.mktemp("context")
    for name in ("app", "model"):
        assert f"!{name}" in rules
        shutil.copytree(ROOT / name, context / name, ignore=ignored)
    return context


def command_of(instruction: str) -> list[str]:
    """The command of a line in the Dockerfile."""
    (text,) = re.findall(
        rf"^{instruction}.*?(\[.*\])$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    command: list[str] = json.loads(text)
    return command


def test_the_health_check_ignores_proxies(copied: Path) -> None:
    interpreter, *arguments = command_of("HEALTHCHECK")
    assert interpreter == "python"
    with another_program() as program:
        port = program.url.rpartition(":")[2]
        for variables, code in (({}, 0), ({"TENFOLD_HOST": ""}, 0), ({"TENFOLD_HOST": "127.0.0.9"}, 1)):
            environment = {"TENFOLD_HOST": "0.0.0.0", "TENFOLD_PORT": port, "http_proxy": "http://127.0.0.1:1"}
            command = [sys.executable, *arguments]
            done = subprocess.run(
                command, cwd=copied, env={**environment, **variables}, capture_output=True, text=True, check=False
            )
            assert done.returncode == code, done.stderr


@pytest.mark.parametrize(("given", "host"), [("", "0.0.0.0"), ("::", "::")])
def test_the_container_listens_on_all_interfaces_if_its_host_is_empty(given: str, host: str, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$TENFOLD_HOST" "$@"', encoding="utf-8")
    python.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TENFOLD_HOST": given}
    printed = subprocess.run(command_of("CMD"), env=environment, capture_output=True, text=True, check=True).stdout
    assert printed == f"{host} -m app\n"


def run(folder: Path, *arguments: str) -> str:
    """What the interpreter prints with the copied code only."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [sys.executable, "-P", *arguments]
    environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_training_code_is_left_out(copied: Path) -> None:
    assert not (copied / "model" / "training").exists()
    assert not (copied / "model" / "commands").exists()
    commands = [path.name for path in (copied / "model").glob("*.py") if "model.commands" in path.read_text()]
    assert not commands


def test_only_the_shipped_weights_are_in_the_image() -> None:
    """Not the bundles that a reader of the tutorials has trained in weights/."""
    rules = rules_of(".dockerignore")
    assert rules[0] == "*"
    assert [rule for rule in rules if rule.startswith("!weights")] == [f"!weights/{name}" for name in NAMES]
    assert "COPY weights weights\n" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_files_of_the_tutorials_are_no_changes_of_the_repository() -> None:
    names = ["digits.py", "cat.png", "feedback.sqlite", "feedback.sqlite-wal", "data/digits/7/1.png", "runs/a"]
    mine = ["weights/digits/card.json", "weights/resnet18-cifar10-2/README.md", "weights/resnet18-cifar10/README.md"]
    command = ["git", "check-ignore", "--no-index", *names, *mine]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("this is no git repository")
    assert done.stdout.split() == [*names, *mine[:-1]]


def test_the_server_can_be_imported(copied: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    modules = set(re.findall(r'python -c "import (app[\w.]*)', dockerfile))
    assert modules
    for module in modules:
        found = run(copied, "-c", f"import {module}, model; print({module}.__file__, model.__file__)")
        assert all(path.startswith(str(copied)) for path in found.split()), "the copied code is imported"


def test_the_command_works(copied: Path) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (script,) = re.findall(r"printf '#!/opt/venv/bin/python\\n(.*)' > /opt/venv/bin/tenfold", dockerfile)
    program = copied / "tenfold"
    program.write_text(script.replace("\\n", "\n"), encoding="utf-8")
    assert "classify" in run(copied, str(program), "--help")
