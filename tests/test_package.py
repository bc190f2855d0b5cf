"""The wheel is complete, and the files about the project agree with the version."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from app import __version__
from tests.documents import ROOT, read

SOURCES = [path.relative_to(ROOT) for name in ("app", "model") for path in (ROOT / name).rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*SOURCES, *map(Path, ("pyproject.toml", "README.md", "LICENSE", "NOTICE"))):
        (folder / name.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    build = [sys.executable, "-m", "uv", "build", "--wheel", "--offline", "--no-build-isolation", "--out-dir"]
    subprocess.run([*build, folder / "dist", folder], check=True, capture_output=True, timeout=120)
    (path,) = (folder / "dist").glob("*.whl")
    assert path.name.startswith(f"tenfold-{__version__}-")
    return zipfile.ZipFile(path)


def test_the_wheel_has_all_files_of_the_packages(wheel: zipfile.ZipFile) -> None:
    expected = {path.as_posix() for path in SOURCES if path.suffix != ".pyc"}
    assert {"app/py.typed", "model/py.typed", "app/static/index.html"} <= expected <= set(wheel.namelist())


def test_the_wheel_has_the_licence(wheel: zipfile.ZipFile) -> None:
    info = f"tenfold-{__version__}.dist-info"
    assert "License-Expression: Apache-2.0" in wheel.read(f"{info}/METADATA").decode()
    for name in ("LICENSE", "NOTICE"):
        assert wheel.read(f"{info}/licenses/{name}").decode() == read(name)


def test_the_citation_and_the_changelog_have_the_version() -> None:
    assert yaml.safe_load(read("CITATION.cff"))["version"] == __version__
    assert f"## [{__version__}]" in read("CHANGELOG.md")


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_the_files_for_github_are_valid(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert content["name"]
    for job in content.get("jobs", {}).values():
        assert all("run" in step or "uses" in step for step in job["steps"])
