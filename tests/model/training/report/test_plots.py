import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.card import Mistake
from model.training.data import LabeledImages
from model.training.evaluate import Assessment, score
from model.training.report.plots import contact_sheet, plots


def test_the_contact_sheet_is_a_png_image() -> None:
    images = LabeledImages(torch.zeros((6, 32, 32, 3), dtype=torch.uint8), torch.zeros(6, dtype=torch.int64))
    mistakes = [Mistake(image=index, label="cat", predicted="dog", probability=0.9) for index in (5, 1)]
    with Image.open(io.BytesIO(contact_sheet(mistakes, images))) as sheet:
        assert (sheet.format, sheet.width > 500) == ("PNG", True)


def test_a_bundle_has_three_plots(tiny_bundle: Path) -> None:
    found = sorted((tiny_bundle / "plots").iterdir())
    assert [plot.name for plot in found] == ["confusion.png", "curves.png", "reliability.png"]
    for plot in found:
        with Image.open(plot) as image:
            image.load()
            assert (image.format, image.width > 400) == ("PNG", True)


def test_a_run_without_evaluation_after_each_epoch_has_plots_too() -> None:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(30, 3)).astype(np.float32), rng.integers(0, 3, 30)
    assessment = Assessment(
        score(logits, truth, 2.0), score(logits, truth), {"noise": 0.9}, {"test": 0.95, "noise": 0.2}, {"test": 0.01}
    )
    history = [{"epoch": 1, "train_loss": 2.0}, {"epoch": 2, "train_loss": 1.5}]
    drawn = plots(["cat", "dog", "owl"], history, assessment, watched="test")
    assert drawn["plots/curves.png"].startswith(b"\x89PNG")


@pytest.mark.parametrize("classes", [2, 100])
def test_any_number_of_classes_with_any_names_is_drawn(classes: int) -> None:
    labels = ["$x$ & $y", "猫", *(f"class {number}" for number in range(2, classes))]
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(300, classes)).astype(np.float32), rng.integers(0, classes, 300)
    assessment = Assessment(score(logits, truth), score(logits, truth), {}, {"test": 0.95}, {"test": 0.01})
    history = [{"epoch": 1, "train_loss": 2.0}]
    drawn = plots(labels, history, assessment, watched="holdout")
    with Image.open(io.BytesIO(drawn["plots/confusion.png"])) as image:
        assert image.width > 700
    images = LabeledImages(torch.zeros((1, 50, 50, 3), dtype=torch.uint8), torch.zeros(1, dtype=torch.int64))
    mistake = Mistake(image=0, file="$x$/a.png", label=labels[0], predicted=labels[1], probability=0.9)
    assert contact_sheet([mistake], images).startswith(b"\x89PNG")
