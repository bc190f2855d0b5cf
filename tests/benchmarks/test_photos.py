"""The metrics of the photo benchmark."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import model
from benchmarks.photos.__main__ import main, measure, write_metrics
from benchmarks.photos.collection import Photo
from model import Prediction, read_card
from model.card import PhotoMetrics, Thresholds
from tests.shipped import for_each_bundle

LIMITS = Thresholds(accepted=0.05, uncertain=0.02)


def prediction(probabilities: tuple[float, float], in_distribution: float) -> Prediction:
    values = np.array(probabilities, np.float32)
    return Prediction(("cat", "dog"), values, 10 * in_distribution, in_distribution, LIMITS, np.log(values)[None], None)


PREDICTIONS = [
    prediction((0.9, 0.1), 0.5),  # a cat, right
    prediction((0.8, 0.2), 0.04),  # a dog, wrong
    prediction((0.3, 0.7), 0.9),  # a cat, wrong
    prediction((0.4, 0.6), 0.01),  # a cat, wrong
    prediction((0.9, 0.1), 0.6),  # others
    prediction((0.9, 0.1), 0.0),
]
TRUTH = np.array([0, 1, 0, 0, -1, -1])


def test_known_values_of_the_metrics() -> None:
    found = measure(PREDICTIONS, TRUTH)
    assert found == {
        "photos": 4,
        "run": 1.0,
        "others": 2,
        "top1": 0.25,
        "top1_by_class": pytest.approx((1 / 3 + 0) / 2),
        "top1_of_accepted": 0.5,
        "ece": pytest.approx((0.1 + 0.8 + 0.7 + 0.6) / 4, abs=1e-6),
        "auroc": pytest.approx(5 / 8),
        "accepted": 0.5,
        "uncertain": 0.25,
        "other": 0.25,
        "others_accepted": 0.5,
        "others_uncertain": 0.0,
        "others_other": 0.5,
    }


@pytest.mark.parametrize(("digit", "half"), [("0", "A"), ("1", "B"), ("a", "A"), ("f", "B")])
def test_the_half_of_a_photo_is_that_of_its_hash(digit: str, half: str) -> None:
    assert Photo(Path(f"photos/{digit}{63 * '0'}.jpg"), None, "food", "pypi:zoo==1").half == half


def test_a_missing_bundle_is_reported_before_photos_are_collected(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    ended = CliRunner().invoke(app, [str(tmp_path / "none"), "--cache", str(tmp_path / "photos")])
    assert (ended.exit_code, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith("error: ")
    assert not (tmp_path / "photos").exists()


@for_each_bundle
def test_the_metrics_are_written_to_the_card_and_its_page(shipped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shipped, tmp_path / "bundle")
    classifier = model.load(folder)
    rows = [
        {"views": views, "half": "all", **measure(PREDICTIONS[5 - views :], TRUTH[5 - views :])} for views in (4, 5)
    ]
    write_metrics(folder, classifier, rows)
    card = read_card(folder / "card.json")
    assert card.version == classifier.card.version
    assert card.metrics.photos == PhotoMetrics(
        images=4, top1=0.25, accepted=0.5, others=2, others_accepted=0.5, views=5
    )
    assert "**25.0%** of 4;" in (folder / "README.md").read_text()
    model.load(folder)
