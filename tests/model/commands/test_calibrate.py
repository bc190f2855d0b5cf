"""python -m model.calibrate."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

import model
from model.card import read_card
from model.commands.calibrate import main
from tests.model.commands.inprocess import invoke


@pytest.fixture
def bundle(int8_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with other constants than those of its weights."""
    folder = shutil.copytree(int8_bundle, tmp_path / "tiny")
    card = json.loads((folder / "card.json").read_text())
    card["calibration"]["temperature"] = 3.0
    card["out_of_distribution"] |= {"score": {"method": "energy"}, "quantiles": [0.0, 1.0], "least_contrast": 0.0}
    card["metrics"]["other"] = {}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_the_constants_and_the_metrics_are_those_of_the_export(bundle: Path, int8_bundle: Path) -> None:
    result = invoke(main, bundle, "--limit", "40")
    assert result.exit_code == 0, result.output
    found, expected = read_card(bundle / "card.json"), read_card(int8_bundle / "card.json")
    assert result.stdout.endswith(
        f"{bundle} has version {found.version}: temperature {found.calibration.temperature}, score mixture, "
        f"test images accepted {found.metrics.accepted['test']:.1%}\n"
    )
    assert found.calibration.temperature == pytest.approx(expected.calibration.temperature, rel=1e-2)
    assert found.out_of_distribution.quantiles == pytest.approx(expected.out_of_distribution.quantiles, rel=1e-2)
    assert found.metrics.top1 == expected.metrics.top1
    assert found.metrics.other == pytest.approx(expected.metrics.other, abs=0.05)
    assert "after the fit of the constants" in found.metrics.measured
    unchanged = {"architecture", "labels", "input", "training", "files"}
    assert found.model_dump(include=unchanged) == expected.model_dump(include=unchanged)
    for engine in ("torch", "openvino"):
        model.load(bundle, engine=engine, device="cpu")  # its self-test passes
    assert f"temperature of {found.calibration.temperature}" in (bundle / "README.md").read_text()


def test_new_limits_change_nothing_but_the_verdicts(int8_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(int8_bundle, tmp_path / "tiny")
    before = read_card(folder / "card.json")
    result = invoke(main, folder, "--limit", "40", "--accepted", "0.5")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("counting the verdicts of 40 test images and of others, in int8 on openvino: about")
    half = read_card(folder / "card.json")
    assert half.out_of_distribution.thresholds == before.out_of_distribution.thresholds.model_copy(
        update={"accepted": 0.5}
    )
    assert half.metrics.accepted["test"] < before.metrics.accepted["test"]
    assert half.metrics.measured == f"{before.metrics.measured}; the verdicts in int8 on openvino"
    same = before.metrics.model_dump(include={"accepted", "other", "measured"})
    assert half.version != before.version
    assert (
        half.model_copy(
            update={
                "out_of_distribution": before.out_of_distribution,
                "metrics": half.metrics.model_copy(update=same),
            }
        )
        == before
    ), "the constants are not fitted again"
    result = invoke(main, folder, "--limit", "40", "--uncertain", "0.4")
    assert result.exit_code == 0, result.output
    both = read_card(folder / "card.json")
    limits = both.out_of_distribution.thresholds
    assert (limits.accepted, limits.uncertain) == (0.5, 0.4)
    assert both.metrics.measured == half.metrics.measured
    assert "at least 50% of" in " ".join((folder / "README.md").read_text().split())


def test_an_onnx_model_is_written_again_with_the_new_constants(onnx_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(onnx_bundle, tmp_path / "tiny")
    card = json.loads((folder / "card.json").read_text())
    card["calibration"]["temperature"] = 3.0
    (folder / "card.json").write_text(json.dumps(card))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code = f"""
import sys
sys.modules["onnx"] = None
from model.commands.exits import run
run("calibrate", "calibrate", [{str(folder)!r}, "--limit", "40"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: the package onnx is not installed: run make install, or install tenfold[onnx]\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    result = invoke(main, folder, "--limit", "40")
    assert result.exit_code == 0, result.output
    assert "fitting the constants to 40 images and testing on 40 and on others, in float32: about" in result.stdout
    found = model.load(folder, engine="onnx", device="cpu").card
    assert found.calibration.temperature != 3.0
    about = onnxruntime.InferenceSession(folder / "model.onnx").get_modelmeta().custom_metadata_map
    assert float(about["temperature"]) == found.calibration.temperature


def test_the_limits_must_be_in_order(bundle: Path) -> None:
    before = (bundle / "card.json").read_bytes()
    result = invoke(main, bundle, "--limit", "40", "--uncertain", "0.06")
    assert result.exit_code == 2
    assert "--uncertain (0.06) is above --accepted (0.05)" in " ".join(result.stderr.replace("│", " ").split())
    assert (bundle / "card.json").read_bytes() == before


@pytest.mark.parametrize("option", ["--accepted", "--uncertain"])
def test_a_limit_cannot_be_given_if_only_the_reference_is_measured(bundle: Path, option: str) -> None:
    before = (bundle / "card.json").read_bytes()
    result = invoke(main, bundle, "--limit", "40", "--reference-only", option, "0.03")
    assert result.exit_code == 2
    assert "leave out --accepted and --uncertain" in " ".join(result.stderr.replace("│", " ").split())
    assert (bundle / "card.json").read_bytes() == before


def test_without_the_data_the_bundle_is_unchanged(bundle: Path, tmp_path: Path) -> None:
    card = json.loads((bundle / "card.json").read_text())
    card["training"]["recipe"]["data"] = "cifar10"
    (bundle / "card.json").write_text(json.dumps(card))
    before = (bundle / "card.json").read_bytes()
    result = invoke(main, bundle, "--data", tmp_path)
    assert result.exit_code == 1
    assert "no CIFAR-10 in" in result.stderr
    assert (bundle / "card.json").read_bytes() == before


def test_only_the_reference_is_measured_if_requested(int8_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(int8_bundle, tmp_path / "tiny")
    expected = read_card(folder / "card.json")
    card = json.loads((folder / "card.json").read_text())
    del card["reference"]
    (folder / "card.json").write_text(json.dumps(card))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "card.json"}
    result = invoke(main, folder, "--limit", "40", "--reference-only")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{folder} has version {expected.version}: distributions of 40 held-out images\n"
    found = read_card(folder / "card.json")
    assert found.model_copy(update={"reference": None}) == expected.model_copy(update={"reference": None})
    assert found.reference is not None
    assert expected.reference is not None
    assert found.reference.classes == pytest.approx(expected.reference.classes, abs=2)
    assert {path: path.read_bytes() for path in before} == before
