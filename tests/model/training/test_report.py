import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.card import read_card
from model.training.data import LabeledImages
from model.training.evaluate import Assessment, Scores, score
from model.training.report import contact_sheet, files, surest_mistakes


@pytest.fixture
def scores() -> Scores:
    """Three classes, six pictures; 1, 4 and 5 are wrong, 5 most surely."""
    logits = np.array([[3, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 3], [0, 1, 0], [9, 0, 0]], np.float32)
    return score(logits, np.array([0, 1, 1, 2, 2, 2]))


def test_the_surest_mistakes_come_first(scores: Scores) -> None:
    assert surest_mistakes(scores) == [5, 1, 4]


def test_the_contact_sheet_is_a_picture(scores: Scores) -> None:
    pictures = LabeledImages(torch.zeros((6, 32, 32, 3), dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    sheet = Image.open(io.BytesIO(contact_sheet(["a", "b", "c"], scores, pictures)))
    assert sheet.format == "PNG"
    assert sheet.width > 500


def test_the_plots_are_pictures(tiny_bundle: Path) -> None:
    plots = sorted((tiny_bundle / "plots").iterdir())
    assert [plot.name for plot in plots] == ["confusion.png", "curves.png", "reliability.png"]
    for plot in plots:
        with Image.open(plot) as image:
            image.load()
            assert (image.format, image.width > 400) == ("PNG", True)


def test_the_front_matter_is_yaml_that_a_hub_can_read(tiny_bundle: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    text = (tiny_bundle / "README.md").read_text()
    _, front, _ = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    card = read_card(tiny_bundle / "card.json")
    assert matter["pipeline_tag"] == "image-classification"
    assert matter["tags"] == ["resnet18", "safetensors"]
    result = matter["model-index"][0]["results"][0]
    assert result["dataset"] == {"name": "synthetic", "type": "synthetic", "split": "test"}
    assert result["metrics"] == [{"type": "accuracy", "value": round(card.metrics.top1, 4)}]


def test_the_readme_repeats_the_card(tiny_bundle: Path) -> None:
    text = (tiny_bundle / "README.md").read_text()
    card = read_card(tiny_bundle / "card.json")
    assert f"**{card.metrics.top1:.2%}** of 40 pictures" in text
    assert f"{card.complexity.parameters:,} parameters" in text
    assert f"commit `{card.training.commit}`" in text
    recipe = re.search(r"```json\n(.*?)\n```", text, re.DOTALL)
    assert recipe is not None
    assert json.loads(recipe[1]) == card.training.recipe
    for plot in re.findall(r"\]\((plots/.*?)\)", text):
        assert (tiny_bundle / plot).is_file()


def test_the_readme_says_how_far_to_trust_it(tiny_bundle: Path) -> None:
    text = (tiny_bundle / "README.md").read_text()
    card = read_card(tiny_bundle / "card.json")
    metrics = card.metrics
    assert f"{metrics.ece:.2%}; before calibration {metrics.ece_uncalibrated:.2%}" in text
    assert f"a temperature of {card.calibration.temperature}, fitted to the likelihood of the 40 held-out" in text
    assert re.search(r"at least 5% of 40\s+held-out pictures score no higher", text)
    assert f"| test | | {metrics.accepted['test']:.1%} |" in text
    for kind, area in metrics.auroc.items():
        assert f"| {kind} | {area:.3f} | {metrics.accepted[kind]:.1%} |" in text


def test_a_run_that_watched_nothing_is_drawn_too(tiny_bundle: Path, assessment: Assessment) -> None:
    card = read_card(tiny_bundle / "card.json")
    history = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.5}]
    drawn = files(card, history, assessment, watched="test")
    assert drawn["plots/curves.png"].startswith(b"\x89PNG")
    assert b"right after the last epoch" not in drawn["README.md"]


@pytest.fixture
def assessment() -> Assessment:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(30, 10)).astype(np.float32), rng.integers(0, 10, 30)
    return Assessment(score(logits, truth, 2.0), score(logits, truth), {"noise": 0.9}, {"test": 0.95, "noise": 0.2})
