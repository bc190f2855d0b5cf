"""A run on a folder of images, and what is done with its bundle."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from model.card import read_card
from model.commands.evaluate import main as evaluate
from model.commands.quantize import main as quantize
from model.errors import DataError
from model.training.data import TestPart, load_again, load_test
from model.training.run import bundle_name
from tests.model.commands.inprocess import invoke
from tests.model.training.data.images import write_classes


def test_the_card_describes_the_folder(folder_bundle: Path) -> None:
    card = read_card(folder_bundle / "card.json")
    data = card.training.data
    assert card.labels == ["bunte Kühe", "猫 | cat"]
    assert data is not None
    assert data.name == "images"
    assert sum(data.train) + sum(data.holdout) + sum(data.test) == 60
    assert (sum(data.train), sum(data.holdout)) == (card.training.pictures, card.calibration.pictures)
    assert data.test == [sum(row) for row in card.metrics.confusion]
    assert card.training.recipe["data"] == "folder"
    assert card.training.recipe["changed"] == ["sizes", "balance"]
    for mistake in card.metrics.mistakes:
        assert mistake.file is not None
        assert mistake.file.startswith(f"{mistake.label}/")


def test_the_readme_describes_the_folder(folder_bundle: Path) -> None:
    text = (folder_bundle / "README.md").read_text()
    data = read_card(folder_bundle / "card.json").training.data
    assert data is not None
    assert (
        f"| data | images: {sum(data.train)} training, {sum(data.holdout)} held-out and {sum(data.test)} test" in text
    )
    assert 'dataset: {name: "images", type: imagefolder, split: test}' in text
    assert "--data folder:PATH" in text
    assert "| 猫 \\| cat | " in text


def test_the_history_has_one_row_per_epoch(folder_bundle: Path) -> None:
    with (folder_bundle.parent / "run" / "history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["epoch", "side", "lr", "train_loss", "loss", "accuracy", "seconds"]


def test_the_same_images_are_held_out_again(folder_bundle: Path, tmp_path: Path) -> None:
    card = read_card(folder_bundle / "card.json")
    lines: list[str] = []
    images = folder_bundle.parent / "images"
    data = load_again(card, f"folder:{images}", cache=folder_bundle.parent / "cache", report=lines.append)
    assert data.about() == card.training.data
    assert not any("decoding" in line or "has changed" in line for line in lines)
    other = write_classes(tmp_path / "other", card.labels, 10, first=5000)
    load_again(card, f"folder:{other}", cache=tmp_path, report=lines.append)
    assert lines[-1] == f"{other} has changed since resnet18-images was trained, or is another folder"


def test_a_bundle_is_tested_on_all_images_of_another_folder(folder_bundle: Path, tmp_path: Path) -> None:
    card = read_card(folder_bundle / "card.json")
    lines: list[str] = []

    def tested(folder: Path, part: TestPart = "auto") -> tuple[int, str]:
        """The number of images, and which these are by the report."""
        images = load_test(card, f"folder:{folder}", part=part, cache=tmp_path / "cache", report=lines.append)
        assert lines[-1].startswith(f"testing on {len(images)} ")
        assert lines[-1].endswith(f"images of {folder}")
        return len(images), lines[-1].split()[3]

    own = folder_bundle.parent / "images"
    other = write_classes(tmp_path / "other", card.labels, 10, first=5000)
    few = write_classes(tmp_path / "few" / "test", card.labels, 1, first=6000)
    parts = tmp_path / "parts"
    for part, count in (("train", 8), ("test", 3)):
        write_classes(parts / part, card.labels, count, first=100 * count)
    shutil.copytree(own, tmp_path / "renamed")
    test = (card.metrics.pictures, "test")
    assert tested(own) == tested(tmp_path / "renamed") == tested(own, "test") == test
    assert tested(own, "all") == (60, "images")
    assert tested(other) == (20, "images")
    assert tested(other, "test")[0] < 10
    assert tested(few) == (2, "images")
    assert tested(parts) == (6, "test")
    assert tested(parts, "all") == (22, "images")
    shutil.rmtree(few / card.labels[0])
    write_classes(few, ["dog"], 1)
    with pytest.raises(DataError, match=r"not those of the model \(missing: bunte Kühe; unknown: dog\)"):
        tested(few)


def test_a_bundle_of_a_folder_is_evaluated_and_quantized_with_it(folder_bundle: Path, tmp_path: Path) -> None:
    images, cache = f"folder:{folder_bundle.parent / 'images'}", folder_bundle.parent / "cache"
    result = invoke(evaluate, folder_bundle, "--data", images, "--cache", cache, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.stderr
    card = read_card(folder_bundle / "card.json")
    assert f'"pictures": {card.metrics.pictures}, "top1": {card.metrics.top1}' in result.stdout
    result = invoke(quantize, folder_bundle)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: resnet18-images was trained on a folder of images: give --data folder:PATH\n"
    with pytest.raises(DataError, match=r"not those of the model \(missing: bunte Kühe, .* unknown: a, b\)"):
        load_again(card, f"folder:{write_classes(tmp_path / 'ab', 'ab', 5)}", cache=tmp_path)


def test_the_part_and_the_images_of_a_test_are_reported(folder_bundle: Path, tmp_path: Path) -> None:
    images, cache = folder_bundle.parent / "images", folder_bundle.parent / "cache"
    labels = read_card(folder_bundle / "card.json").labels
    more = write_classes(tmp_path / "more", labels, 20, first=9000)
    sources: list[str | Path] = [
        "--data",
        f"folder:{images}",
        "--data",
        f"folder:{more}",
        "--cache",
        cache,
        "--device",
        "cpu",
    ]
    result = invoke(evaluate, folder_bundle, *sources, "--json")
    assert result.exit_code == 0, result.stderr
    count = json.loads(result.stdout)["pictures"]
    assert f"testing on {count} test images of folder:{images} and folder:{more}\n" in result.stderr
    result = invoke(evaluate, folder_bundle, *sources, "--part", "all")
    assert result.exit_code == 1
    assert result.stderr == "error: --part all is for one folder of images: give one --data folder:PATH\n"


def test_the_name_of_a_bundle_is_made_of_any_name() -> None:
    assert bundle_name("resnet18", "cifar10") == "resnet18-cifar10"
    assert bundle_name("timm:pvt_v2_b0", "my images 2") == "pvt_v2_b0-my-images-2"
    assert bundle_name("resnet18", "猫") == "resnet18"
