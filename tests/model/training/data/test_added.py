"""Several sources: --data data --data folder:PATH."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.card import read_card
from model.errors import DataError
from model.training.data import CIFAR10_LABELS, DataSet, Sources, load, load_again, load_for
from model.training.data.sets import PARTS, Part
from model.training.recipes import Recipe, recipe_named
from tests.model.training.data.images import write_classes, write_image

SMOKE = recipe_named("smoke")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def feedback(tmp_path: Path) -> Path:
    """Images of two classes, in an order other than that of the data set."""
    return write_classes(tmp_path / "feedback", ["ship", "cat"], 12)


def read(recipe: Recipe, data: Sources, cache: Path, **options: int) -> tuple[DataSet, list[str]]:
    reports: list[str] = []
    return load_for(recipe, data, cache=cache, report=reports.append, **options), reports  # type: ignore[arg-type]


def sizes(data: DataSet) -> dict[Part, int]:
    return {part: len(getattr(data, part)) for part in PARTS}


def test_the_images_of_a_folder_join_the_classes_with_their_names(feedback: Path, cache: Path) -> None:
    base = load("synthetic", Path(), holdout=SMOKE.holdout)
    data, reports = read(SMOKE, ["data", f"folder:{feedback}"], cache)
    assert data.labels == CIFAR10_LABELS
    (added,) = data.added
    assert (added.name, added.train + added.holdout + added.test, added.repeated) == ("feedback", 24, 0)
    assert added.train > added.test > 0
    assert sizes(data) == {part: count + getattr(added, part) for part, count in sizes(base).items()}
    cat, ship = CIFAR10_LABELS.index("cat"), CIFAR10_LABELS.index("ship")
    more = torch.tensor(data.counts("train")) - torch.tensor(base.counts("train"))
    assert set(more.nonzero().flatten().tolist()) == {cat, ship}
    path = data.test_files[-1]
    assert path.startswith("feedback/")
    assert CIFAR10_LABELS[int(data.test.labels[-1])] == path.split("/")[1]
    with Image.open(feedback.parent / path) as image:
        resized = image.resize((40, 32), Image.Resampling.BILINEAR).crop((4, 0, 36, 32))
    assert (data.test.pixels[-1].numpy() == resized).all()
    assert data.test_files[: len(base.test)] == [""] * len(base.test)
    assert "added to synthetic images: 24 of 24 images of feedback" in reports
    assert data.about().added == [added]


def test_one_image_of_one_class_is_enough(tmp_path: Path, cache: Path) -> None:
    write_image(tmp_path / "first" / "cat" / "a.png", 1)
    data, _ = read(SMOKE, ["data", f"folder:{tmp_path / 'first'}"], cache)
    assert sum(sizes(data).values()) == 501


def test_images_that_the_data_set_has_already_are_left_out(tmp_path: Path, cache: Path) -> None:
    """Also its test images, which would otherwise be trained on, unless they have another class in the same part."""
    base = load("synthetic", Path(), holdout=SMOKE.holdout)
    folder = tmp_path / "feedback"
    for part in PARTS:
        images = getattr(base, part)
        for index in range(20):
            path = folder / base.labels[int(images.labels[index])] / f"{part}-{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.pixels[index].numpy()).save(path)
    write_image(folder / "cat" / "new.png", 1)
    data, reports = read(SMOKE, ["data", f"folder:{folder}"], cache)
    (added,) = data.added
    assert (added.train + added.holdout + added.test, added.repeated) == (1, 60)
    line = "added to synthetic images: 1 of 61 images of feedback; the others are in synthetic images already"
    assert line in reports
    again, _ = read(SMOKE, ["data", f"folder:{folder}", f"folder:{folder}"], cache)
    assert [each.repeated for each in again.added] == [60, 61]


def test_a_corrected_class_of_a_training_image_is_kept(tmp_path: Path, cache: Path) -> None:
    base = load("synthetic", Path(), holdout=SMOKE.holdout)
    folder = tmp_path / "feedback" / "frog"
    folder.mkdir(parents=True)
    wrong = next(index for index in range(10) if base.labels[int(base.train.labels[index])] == "cat")
    Image.fromarray(base.train.pixels[wrong].numpy()).save(folder / "a.png")
    recipe = replace(SMOKE, holdout_share=0.0, test_share=1e-9)
    data, _ = read(recipe, ["data", f"folder:{folder.parent}"], cache)
    assert (data.added[0].train, data.added[0].repeated) == (1, 0)
    assert torch.equal(data.train.pixels[-1], base.train.pixels[wrong])


def test_folders_are_added_to_a_folder_without_reading_it_into_memory(tmp_path: Path, cache: Path) -> None:
    base = write_classes(tmp_path / "base", ["cat", "dog"], 30)
    more = write_classes(tmp_path / "more", ["dog"], 8, first=5000)
    alone, _ = read(SMOKE, f"folder:{base}", cache)
    data, _ = read(SMOKE, [f"folder:{base}", f"folder:{more}"], cache)
    assert (data.name, data.sha256, data.labels) == ("base", alone.sha256, ("cat", "dog"))
    assert sum(sizes(data).values()) == 68
    assert torch.equal(data.train.pixels[: len(alone.train)], alone.train.pixels)
    for part in PARTS:
        assert getattr(data, part).mapped
        assert not getattr(data, part).pixels.numpy().flags.owndata
    entries = [path.name for path in cache.iterdir() if path.is_dir() or path.suffix != ".lock"]
    assert len(entries) == 2, "nothing else stays in the cache"


def test_a_limit_holds_for_each_source(feedback: Path, cache: Path) -> None:
    data, _ = read(SMOKE, ["data", f"folder:{feedback}"], cache, limit=2)
    assert (data.added[0].train, len(data.train)) == (2, 4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (["data", "folder:{tmp}/unknown"], "no classes of the data set that it is added to .wolf.: rename or remove"),
        (["folder:{tmp}/feedback", "data"], "only folders can be added to a data set, and data is not one: name it f"),
        (["data", "folder:{tmp}/none"], "the folder .*none does not exist"),
        (["data", "folder:{tmp}/feedback/cat"], "has no folders of classes: .* for at least one class"),
    ],
)
def test_mistakes_are_one_sentence(data: list[str], message: str, feedback: Path, cache: Path) -> None:
    write_classes(feedback.parent / "unknown", ["cat", "wolf"], 3)
    with pytest.raises(DataError, match=message):
        read(SMOKE, [each.format(tmp=feedback.parent) for each in data], cache)


def test_a_bundle_finds_the_same_images_again(feedback: Path, tiny_bundle: Path, cache: Path) -> None:
    data, _ = read(SMOKE, ["data", f"folder:{feedback}"], cache)
    card = read_card(tiny_bundle / "card.json")
    card = card.model_copy(update={"training": card.training.model_copy(update={"data": data.about()})})
    reports: list[str] = []
    again = load_again(card, ["data", f"folder:{feedback}"], cache=cache, report=reports.append)
    for part in PARTS:
        assert torch.equal(getattr(again, part).pixels, getattr(data, part).pixels)
    assert not any("was trained with other" in line for line in reports)
    load_again(card, "data", cache=cache, report=reports.append)
    assert reports[-1] == "tiny was trained with other added folders, or with other images in them: feedback"


def test_the_images_held_out_for_the_initial_weights_are_held_out_again(tiny_bundle: Path) -> None:
    card = read_card(tiny_bundle / "card.json")
    recipe = {**card.training.recipe, "data": "cifar10", "holdout": 2500}
    card = card.model_copy(update={"training": card.training.model_copy(update={"recipe": recipe})})
    assert recipe_named("transfer").for_bundle(card).holdout == 2500
    assert recipe_named("article").for_bundle(card).holdout == 0
