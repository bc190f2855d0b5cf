"""Every bundle in weights/ loads, passes its self-test in both engines, and agrees with its card."""

import re
from pathlib import Path

import numpy as np
import pytest

import model
from model.bundle import CARD_FILE
from model.card import OPENVINO_FILES, WEIGHTS_FILE, read_card
from model.engines.base import EngineName
from model.training.data import load_cifar10_test
from model.training.report.readme import NOTES_FILE, README_FILE, readme_of
from tests.shipped import for_each_bundle

IMAGES = 1000


@for_each_bundle
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_it_passes_its_self_test_and_has_the_accuracy_on_its_card(
    shipped: Path, engine: EngineName, cifar10_root: Path
) -> None:
    classifier = model.load(shipped, engine=engine, device="cpu")
    card = classifier.card
    assert card.name == shipped.name
    assert card.openvino is not None
    test = load_cifar10_test(cifar10_root)[:IMAGES]
    predictions = classifier.classify([image[None] for image in test.pixels.numpy()])
    found = [prediction.top_k(1)[0].index for prediction in predictions]
    expected = card.openvino.top1 if engine == "openvino" else card.metrics.top1
    deviation = (expected * (1 - expected) / IMAGES) ** 0.5
    assert np.mean(np.array(found) == test.labels.numpy()) == pytest.approx(expected, abs=4 * deviation)
    accepted = np.mean([prediction.accepted() for prediction in predictions])
    assert accepted == pytest.approx(card.metrics.accepted["test"], abs=0.03)


@for_each_bundle
def test_its_files_are_those_of_a_bundle_and_its_pages_follow_the_card(shipped: Path) -> None:
    files = {CARD_FILE, WEIGHTS_FILE, *OPENVINO_FILES, README_FILE, NOTES_FILE, "plots"}
    assert {path.name for path in shipped.iterdir()} == files
    page = (shipped / README_FILE).read_bytes()
    assert page == readme_of(shipped, read_card(shipped / CARD_FILE))
    plots = set(re.findall(r"\]\((plots/.*?)\)", page.decode()))
    assert {path.relative_to(shipped).as_posix() for path in (shipped / "plots").iterdir()} == plots
