"""The benchmark of several models."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from benchmarks.models import main, table
from benchmarks.serving.wrk import Load


def load_of(p99: float, rejected: int = 0) -> Load:
    return Load(requests=1000, seconds=10, p50=p99 / 2, p90=p99, p99=p99, rejected=rejected, lost=0)


def run(*arguments: str | Path) -> Result:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_the_table_compares_the_latencies() -> None:
    _, alone, during, flood, ratio = table(load_of(10), load_of(25), load_of(300, rejected=100)).splitlines()
    assert alone.split() == ["alone", "100", "5.0", "10.0", "0"]
    assert during.split() == ["during", "a", "flood", "100", "12.5", "25.0", "0"]
    assert flood.split() == ["the", "flood", "90", "150.0", "300.0", "100"]
    assert ratio == "p99 during the flood is 2.5 times that alone"


def test_a_missing_bundle_is_an_error(tmp_path: Path) -> None:
    done = run(tmp_path / "none", tmp_path / "none")
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs wrk")
def test_one_model_is_measured_alone_and_during_a_flood(int8_bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(int8_bundle, copy)
    card = json.loads((copy / "card.json").read_text(encoding="utf-8"))
    (copy / "card.json").write_text(json.dumps({**card, "name": "other"}), encoding="utf-8")
    done = run(int8_bundle, copy, "--seconds", "1", "--connections", "4", "--log", tmp_path / "log")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["connections"] == 4
    for name in ("alone", "during", "flood"):
        assert found[name]["requests"] > 0
        assert found[name]["lost"] == 0
