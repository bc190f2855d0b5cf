import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import model
from model.training.data import load_cifar10_test
from model.training.evaluate import measure


def evaluate(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "model.evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_scores_are_a_table_and_a_last_line_of_json(
    tiny_bundle: Path, tiny_classifier: model.Classifier, cifar10_root: Path
) -> None:
    done = evaluate(tiny_bundle, "--data", cifar10_root, "--limit", "50", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.strip().splitlines()
    summary = json.loads(last)
    text = "\n".join(table)
    assert "tiny on torch, cpu" in text
    assert f"{summary['top1']:.2%}" in text
    assert all(label in text for label in tiny_classifier.card.labels)
    assert (summary["model"], summary["version"]) == ("tiny", tiny_classifier.card.version)
    expected = measure(tiny_classifier.engine, tiny_classifier.card.input, load_cifar10_test(cifar10_root)[:50])
    assert summary["pictures"] == 50
    assert summary["nll"] == pytest.approx(expected.nll, rel=0.02)
    assert list(summary["per_class"]) == tiny_classifier.card.labels


@pytest.mark.parametrize("fault", ["no data", "no bundle"])
def test_what_is_missing_is_one_sentence(fault: str, tiny_bundle: Path, tmp_path: Path) -> None:
    done = evaluate(tiny_bundle if fault == "no data" else tmp_path, "--data", tmp_path, "--device", "cpu")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert ("no CIFAR-10 in" if fault == "no data" else "card.json cannot be read") in done.stderr


@pytest.mark.slow
def test_the_shipped_weights_reach_the_accuracy_on_their_card(cifar10_root: Path) -> None:
    folder = Path("weights/resnet18-cifar10")
    if not (folder / "card.json").is_file():
        pytest.skip(f"{folder} is not here yet: train it, or fetch it")
    classifier = model.load(folder)
    scores = measure(classifier.engine, classifier.card.input, load_cifar10_test(cifar10_root))
    assert scores.pictures == 10_000
    assert scores.top1 == pytest.approx(classifier.card.metrics.top1, abs=0.001)
    assert np.nanmin(scores.per_class) > 0.5
