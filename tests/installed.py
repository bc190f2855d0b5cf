"""The package as `pip install tenfold` installs it, in an environment of its own."""

import os
import re
import shutil
import subprocess
import tomllib
import venv
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tests.documents import ROOT


def required_packages() -> set[str]:
    """The distributions that `dependencies` in pyproject.toml needs, without any extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    pending = list(project["dependencies"])
    while pending:
        requirement = pending.pop()
        name = re.match(r"[\w.-]+", requirement)
        assert name
        if "extra ==" in requirement or name[0] in found:
            continue
        try:
            pending += distribution(name[0]).requires or []
        except PackageNotFoundError:  # for another system or version of Python
            continue
        found.add(name[0])
    return found


def install(place: Path, extra_packages: Iterable[str] = ()) -> Path:
    """Make an environment with the code of the package and its required dependencies, which are linked.

    Args:
        place: new folder.
        extra_packages: distributions to install in addition.

    Returns:
        Its interpreter.
    """
    venv.create(place, with_pip=False)
    (site,) = place.glob("lib/python*/site-packages")
    for name in (*required_packages(), *extra_packages):
        for file in distribution(name).files or ():
            top, target = file.parts[0], site / file.parts[0]
            if top not in ("..", "__pycache__") and not target.exists():
                target.symlink_to(distribution(name).locate_file(top))  # type: ignore[arg-type]
    for package in ("app", "model"):
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    return place / "bin" / "python"


def run(interpreter: Path, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` in a folder, without the settings of this process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TENFOLD_", "PYTHON"))}
    return subprocess.run(
        [interpreter, *map(str, arguments)],
        cwd=folder,
        env=kept,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
