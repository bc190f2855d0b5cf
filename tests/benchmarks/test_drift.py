"""python -m benchmarks.drift: the corruptions, and the delays that it measures."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from app.settings import Settings
from benchmarks.drift.__main__ import Monitor, classify, delay, drawn, false_alarms, main
from benchmarks.drift.corruptions import CORRUPTIONS, corrupt
from model import Classifier, Reference
from model.bundle import open_bundle, update_bundle
from model.card import Histogram
from tests.app.fakes import CARD, FakeEngine, fake_classifier, random_pixels


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    ramp = np.linspace(30, 200, 32).astype(np.uint8)
    return np.stack([ramp[:, None] + 0 * ramp, ramp[None] + 0 * ramp[:, None], random_pixels(3)[..., 0] // 2], axis=2)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_level_changes_more(name: str, image: NDArray[np.uint8]) -> None:
    changes = [np.abs(corrupt(image, name, level).astype(float) - image).mean() for level in range(1, 6)]
    assert len(CORRUPTIONS[name].values) == 5
    assert changes[0] > 0
    assert all(low < high for low, high in pairwise(changes)), changes
    again = corrupt(image, name, 5)
    assert (again == corrupt(image, name, 5)).all()
    assert again.shape == image.shape
    assert again.dtype == np.uint8


def test_blur_and_contrast_keep_an_image_of_one_colour() -> None:
    grey = np.full((32, 32, 3), 90, np.uint8)
    for name in ("Gaussian blur", "contrast"):
        assert (corrupt(grey, name, 5) == grey).all()
    assert (corrupt(grey, "brightness", 3) == 128).all()
    assert np.std(corrupt(grey, "Gaussian noise", 5)) == pytest.approx(25.5, rel=0.1)


def test_blur_is_that_of_a_gaussian() -> None:
    point = np.zeros((33, 33, 3), np.uint8)
    point[16, 16] = 255
    found = corrupt(point, "Gaussian blur", 5)[..., 0] / 255
    assert found[16, 16] == pytest.approx(1 / (2 * np.pi), abs=0.01)
    assert found[16, 17] / found[16, 16] == pytest.approx(np.exp(-0.5), abs=0.03)


def reference_of(classes: list[int]) -> Reference:
    """A reference with so many images of each class, all in one bin of the other distributions."""
    one_bin = Histogram(edges=[], pictures=[sum(classes)])
    return Reference(classes=classes, confidence=one_bin, in_distribution=one_bin, views=1, pictures=sum(classes))


def test_a_change_is_noticed_and_none_is_not() -> None:
    engine = FakeEngine()
    predictions = classify(fake_classifier(engine), [random_pixels(seed) for seed in range(400)])
    found = [int(each.probabilities.argmax()) for each in predictions]
    reference = reference_of(np.bincount(found, minlength=10).tolist())
    classifier = Classifier(CARD.model_copy(update={"reference": reference}), engine)
    settings = Settings(drift_window=200, drift_min_images=50)
    clean = drawn(predictions, np.random.default_rng(0))
    alarms, largest = false_alarms(Monitor(classifier, settings), clean, 2000)
    assert alarms == 0
    assert largest["classes"] > 0
    assert largest["confidence"] == 0
    only = [each for each, index in zip(predictions, found, strict=True) if index == found[0]]
    noticed = delay(Monitor(classifier, settings), clean, drawn(only, np.random.default_rng(1)), 400)
    assert noticed.images is not None
    assert 0 < noticed.images <= 200
    assert noticed.by == ("classes",)
    assert delay(Monitor(classifier, settings), clean, clean, 400).images is None


@pytest.mark.parametrize("missing", ["bundle", "reference", "data"])
def test_a_mistake_is_reported_in_one_sentence(missing: str, tiny_bundle: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(main)
    bundle = shutil.copytree(tiny_bundle, tmp_path / "copy")
    card = open_bundle(bundle).card
    reference = None if missing == "reference" else reference_of([1] * len(card.labels))
    update_bundle(bundle, {}, card.model_copy(update={"reference": reference}))
    bundle = tmp_path / "none" if missing == "bundle" else bundle
    ended = CliRunner().invoke(app, [str(bundle), "--data", str(tmp_path / "none"), "--clean-images", "1"])
    assert (ended.exit_code, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    expected = {"bundle": "card.json cannot be read", "reference": "tiny has no reference", "data": "no CIFAR-10 in"}
    assert ended.stderr.startswith("error: ")
    assert expected[missing] in ended.stderr
