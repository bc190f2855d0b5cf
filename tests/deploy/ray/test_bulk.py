"""Bulk classification with Ray Data."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

pytest.importorskip("ray", reason="Ray is not installed: run make ray")

import pyarrow as pa
import pyarrow.parquet as pq
import typer

from deploy.ray import bulk
from deploy.ray.parts import divide
from model import read_card
from tests.app.running import default_sigint
from tests.model.training.data.images import write_image

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """239 images and a file that is none."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(239):
        write_image(folder / f"{number % 7}" / f"{number:03}.png", number)
    (folder / "0" / "bad.png").write_text("no image")
    return folder


def invoke(*arguments: str | Path) -> Result:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(bulk.main)
    return CliRunner().invoke(app, list(map(str, arguments)))


def rows_of(folder: Path) -> list[dict[str, object]]:
    tables = [pq.read_table(part) for part in sorted(folder.glob("*.parquet"))]
    rows: list[dict[str, object]] = pa.concat_tables(tables).to_pylist()
    return rows


def actors_of(cluster: int) -> list[int]:
    """The processes of actors that descend from a process."""
    parents, names = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            names[int(stat.parent.name)] = (stat.parent / "cmdline").read_bytes()
        except OSError:  # it has ended
            continue

    def ancestors(process: int) -> Iterator[int]:
        while process := parents.get(process, 0):
            yield process

    return [pid for pid, name in names.items() if name.startswith(b"ray::Map") and cluster in ancestors(pid)]


@pytest.mark.slow
def test_no_image_is_lost_or_repeated_if_an_actor_dies(images: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    options = [str(images), str(output), "--weights", str(tiny_bundle), "--part-size", "20", "--actors", "2"]
    command = [sys.executable, "-m", "deploy.ray.bulk", *options]
    with default_sigint():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    killed = []
    for line in process.stdout:
        if line.startswith("1 of 12 parts"):
            killed = actors_of(process.pid)[:1]
            os.kill(killed[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    if "timed out during startup" in errors:
        pytest.skip("Ray did not start within its fixed time limit: this machine is too busy")
    assert process.returncode == 1, errors
    assert killed
    rows = rows_of(output)
    expected = sorted(str(path) for path in images.rglob("*.png"))
    assert sorted(str(row["path"]) for row in rows) == expected
    assert [row["path"] for row in rows if row["error"] is not None] == [str(images / "0" / "bad.png")]
    assert sorted(path.name for path in output.iterdir()) == [
        *(f"part-{number:06}.parquet" for number in range(12)),
        "run.json",
    ]
    # The same command does nothing more, and starts no cluster.
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    again = invoke(*options)
    assert again.exit_code == 1, again.stderr
    assert "12 parts, of which 12 are complete\n" in again.stdout
    assert "with 1 images that could not be classified" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before


def like(ranked: object) -> object:
    """Probabilities by class, up to what the precision and the batches of an engine change."""
    return None if ranked is None else pytest.approx(by_class(ranked), abs=0.01)


def by_class(ranked: object) -> object:
    return {each["label"]: each["probability"] for each in ranked} if isinstance(ranked, list) else None


def classified(source: Path, bundle: Path, folder: Path, column: str | None = None) -> list[dict[str, object]]:
    """What an actor writes about all parts of the input."""
    version = read_card(bundle / "card.json").version
    folder.mkdir()
    actor = bulk.Classify(str(folder), {**bulk.OVERRIDES, "weights": bundle}, 10, version)
    parts, _ = divide(source, column, 100)
    counts = [actor({"part": json.dumps(asdict(part))})["images"] for part in parts]
    rows = rows_of(folder)
    assert len(rows) == sum(counts)
    return rows


def test_the_results_are_those_of_tenfold_classify(images: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    from app.cli.classify.local import LocalClassifier

    files = sorted(map(str, (images / "0").iterdir()))
    groups = LocalClassifier({**bulk.OVERRIDES, "weights": tiny_bundle}, 10).classify(files)
    rows = classified(images / "0", tiny_bundle, tmp_path / "out")
    for row, result in zip(rows, [result for group in groups for result in group], strict=True):
        assert row["path"] == result.path
        assert row["error"] == result.error
        assert row["version"] == read_card(tiny_bundle / "card.json").version
        if result.error is None:
            assert by_class(row["top_k"]) == like(result.prediction["top_k"])
            assert row["accepted"] == (row["verdict"] == "accepted")
            assert row["in_distribution"] == pytest.approx(result.prediction["in_distribution"], abs=0.1)


@pytest.mark.parametrize("column", ["image", "path"])
def test_parquet_has_images_as_bytes_or_as_paths(column: str, images: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    files = sorted((images / "0").iterdir())
    values = [file.read_bytes() if column == "image" else str(file.relative_to(images)) for file in files]
    source = images / f"{column}.parquet"
    pq.write_table(pa.table({"other": range(len(files) + 1), column: [*values, None]}), source, row_group_size=20)
    rows = classified(source, tiny_bundle, tmp_path / "out")
    source.unlink()
    expected = classified(images / "0", tiny_bundle, tmp_path / "files")
    assert len(rows) == len(files) + 1
    assert rows[-1]["error"] == "it is empty"
    for row, other in zip(rows, expected, strict=False):
        assert row["error"] == other["error"]
        assert by_class(row["top_k"]) == like(other["top_k"])
    if column == "image":
        assert rows[0]["path"] == f"{source}#0.0"
        assert rows[20]["path"] == f"{source}#1.0"
    else:
        assert [row["path"] for row in rows[:-1]] == list(map(str, files))


def test_a_part_that_fails_leaves_no_file(images: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    actor = bulk.Classify(str(tmp_path), {**bulk.OVERRIDES, "weights": tiny_bundle}, 3, "0")
    (part, *_), _ = divide(images, None, 10)
    lost = {**asdict(part), "paths": [], "file": str(tmp_path / "none.parquet"), "column": "image"}
    with pytest.raises(FileNotFoundError):
        actor({"part": json.dumps(lost)})
    assert list(tmp_path.iterdir()) == []


def test_the_output_of_another_run_is_refused(images: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    bulk.prepare(tmp_path / "out", {"version": "1"})
    (tmp_path / "out" / ".part-000001.parquet.1.partial").touch()
    bulk.check_output(tmp_path / "out", {"version": "1"})
    bulk.prepare(tmp_path / "out", {"version": "1"})
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
    result = invoke(images, tmp_path / "out", "--weights", tiny_bundle)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {tmp_path / 'out'} has results of other images, weights or options: ")
    (tmp_path / "mine").mkdir()
    result = invoke(images, tmp_path / "mine", "--weights", tiny_bundle)
    assert result.exit_code == 2
    assert result.stderr.endswith("exists and is not of a bulk classification: choose another OUTPUT\n")


def test_wrong_input_is_one_sentence(images: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "no.parquet").write_text("no Parquet")
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ([tmp_path / "a.parquet"], "has no column image or path, only a, b: give --column"),
        ([tmp_path / "a.parquet", "--column", "c"], "has no column c, only a, b: give --column"),
        ([tmp_path / "a.parquet", "--column", "a"], "has the type int64: give one of binary or string"),
        ([tmp_path / "no.parquet"], "is no Parquet file that can be read: correct INPUT"),
        ([tmp_path / "empty"], "no images are in this folder"),
        ([images, "--column", "a"], "has no Parquet files: leave out --column"),
        ([images, "--top-k", "11"], "--top-k is 11: choose 1 to 10"),
    ):
        source, *options = map(str, arguments)
        result = invoke(source, tmp_path / "out", "--weights", tiny_bundle, *options)
        assert (result.exit_code, result.stdout) == (2, ""), result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.endswith(f"{message}\n")
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_a_cluster_nothing_is_written(images: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    result = invoke(images, tmp_path / "out", "--weights", tiny_bundle, "--address", "127.0.0.1:1")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there is no Ray cluster at 127.0.0.1:1: start one with ray start --head")
    assert list(tmp_path.iterdir()) == []


def test_without_ray_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    code = "import sys, runpy; sys.modules['ray'] = None; runpy.run_module('deploy.ray.bulk', run_name='__main__')"
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "out")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: Ray is not installed: run make ray\n"
