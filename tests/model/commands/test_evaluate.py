import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import model
from model import ModelError
from model.commands.evaluate import main
from model.training.data import LabeledImages, load_cifar10_test
from model.training.evaluate import Assessment, assess, evaluate_bundle
from tests.model.commands.inprocess import invoke
from tests.shipped import for_each_bundle


def assessment_of(classifier: model.Classifier, images: LabeledImages) -> Assessment:
    card = classifier.card
    return assess(classifier.engine, card.input, card.calibration, card.out_of_distribution, images)


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model.evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_output_is_a_table_or_a_line_of_json(
    tiny_bundle: Path, tiny_classifier: model.Classifier, cifar10_root: Path
) -> None:
    done = evaluate(tiny_bundle, "--data", cifar10_root, "--limit", "50", "--device", "cpu", "--json")
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    summary = json.loads(done.stdout)
    result = invoke(main, tiny_bundle, "--data", cifar10_root, "--limit", "50", "--device", "cpu")
    assert result.exit_code == 0, result.stderr
    text = result.stdout
    table = text.splitlines()
    assert "{" not in text
    assert "tiny on torch, cpu" in text
    assert f"{summary['top1']:.2%}" in text
    assert all(label in text for label in tiny_classifier.card.labels)
    assert (summary["model"], summary["version"]) == ("tiny", tiny_classifier.card.version)
    expected = assessment_of(tiny_classifier, load_cifar10_test(cifar10_root)[:50])
    assert summary["pictures"] == 50
    assert summary["nll"] == pytest.approx(expected.scores.nll, rel=0.02)
    assert summary["ece_uncalibrated"] == pytest.approx(expected.uncalibrated.ece, abs=0.05)
    assert summary["auroc"] == pytest.approx(expected.auroc, abs=0.02)
    assert summary["accepted"] == pytest.approx(expected.accepted, abs=0.05)
    rows = {name.strip(): value.strip() for _, name, value, _ in (line.split("│") for line in table if "│" in line)}
    assert summary["macro"] == pytest.approx(expected.scores.macro, abs=0.02)
    assert rows["macro accuracy, the mean over the classes"] == f"{summary['macro']:.2%}"
    first = tiny_classifier.card.labels[0]
    assert rows[first] == f"{summary['per_class'][first]:.1%}  {summary['f1'][first]:.3f}"
    assert rows["expected calibration error"] == f"{summary['ece']:.2%}"
    assert rows["... before calibration"] == f"{summary['ece_uncalibrated']:.2%}"
    assert rows["test images accepted"] == f"{summary['accepted']['test']:.1%}"
    for kind in ("shuffled tiles", "drawn shapes", "coloured noise"):
        assert rows[f"AUROC against {kind}"] == f"{summary['auroc'][kind]:.3f}"
        assert rows[f"{kind} accepted"] == f"{summary['accepted'][kind]:.1%}"
    assert list(summary["per_class"]) == tiny_classifier.card.labels


@pytest.mark.parametrize("fault", ["no data", "no bundle"])
def test_a_missing_input_is_reported_in_one_sentence(fault: str, tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = tiny_bundle if fault == "no data" else tmp_path
    result = invoke(main, bundle, "--data", tmp_path, "--device", "cpu")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert ("no CIFAR-10 in" if fault == "no data" else "card.json cannot be read") in result.stderr


def test_a_bundle_of_other_classes_is_an_error(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "letters")
    card = json.loads((folder / "card.json").read_text())
    card["labels"], card["metrics"]["mistakes"] = [*"abcdefghij"], []
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(
        ModelError, match=r"the classes of .*letters are not the ten of CIFAR-10: give their images by --data"
    ):
        evaluate_bundle(folder, tmp_path, device="cpu")


@pytest.mark.slow
@for_each_bundle
def test_the_shipped_weights_reach_the_accuracy_on_their_card(shipped: Path, cifar10_root: Path) -> None:
    classifier = model.load(shipped)
    assessment = assessment_of(classifier, load_cifar10_test(cifar10_root))
    scores, metrics = assessment.scores, classifier.card.metrics
    assert scores.images == 10_000
    assert scores.top1 == pytest.approx(metrics.top1, abs=0.002), "the card has float32, and int8 serves on a CPU"
    assert scores.ece == pytest.approx(metrics.ece, abs=0.003)
    assert assessment.auroc == pytest.approx(metrics.auroc, abs=0.01)
    assert assessment.accepted == pytest.approx(metrics.accepted, abs=0.02)
    assert np.nanmin(scores.per_class) > 0.5
