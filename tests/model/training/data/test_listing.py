import unicodedata
from pathlib import Path

import pytest

from model.errors import DataError
from model.training.data.listing import list_images
from tests.model.training.data.images import write_classes


def empty_files(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def test_classes_are_sorted_and_their_files_are_found_at_any_depth(tmp_path: Path) -> None:
    empty_files(tmp_path, "b/2.png", "b/1.png", "a/deep/er/3.JPG", "README.txt")
    listing = list_images(tmp_path)
    assert listing.labels == ("a", "b")
    assert [(file.path, file.label, file.part) for file in listing.files] == [
        ("a/deep/er/3.JPG", 0, "train"), ("b/1.png", 1, "train"), ("b/2.png", 1, "train"),
    ]  # fmt: skip
    assert listing.parts == ()


def test_parts_are_found_by_their_names(tmp_path: Path) -> None:
    empty_files(tmp_path, *(f"{part}/{label}/1.png" for part in ("train", "test", "val") for label in "ab"))
    listing = list_images(tmp_path)
    assert [(file.path, file.part) for file in listing.files if file.label == 0] == [
        ("train/a/1.png", "train"), ("val/a/1.png", "holdout"), ("test/a/1.png", "test"),
    ]  # fmt: skip
    assert set(listing.parts) == {"train", "holdout", "test"}


def test_a_class_may_have_the_name_train(tmp_path: Path) -> None:
    assert list_images(empty_files(tmp_path, "train/1.png", "bus/2.png")).labels == ("bus", "train")


def test_names_may_have_spaces_and_other_letters(tmp_path: Path) -> None:
    empty_files(tmp_path, "bunte Kühe/1.png", unicodedata.normalize("NFD", "Äpfel") + "/2.png", "猫/3.png")
    assert list_images(tmp_path).labels == ("bunte Kühe", "Äpfel", "猫")


def test_names_with_a_dot_are_left_out(tmp_path: Path) -> None:
    empty_files(tmp_path, "a/1.png", "a/.DS_Store", "a/.thumbnails/1.png", "b/1.png", ".git/HEAD")
    listing = list_images(tmp_path)
    assert listing.labels == ("a", "b")
    assert len(listing.files) == 2


@pytest.mark.parametrize(
    ("paths", "sentence"),
    [
        ([], "has no folders of classes: put the images of each class in a folder"),
        (["1.png", "2.png"], "has no folders of classes"),
        (["a/1.png"], "has only one class, a: put the images"),
        (["train/a/1.png", "train/b/1.png"], "has only one class, train: .* or name --data folder:.*/train"),
        (["a/1.png", "b/.hidden"], "the class folder .*/b is empty: add images, or remove the folder"),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"],
            r"train and .*test have different classes \(only in train: b; only in test: c\): give both the same",
        ),
        (
            ["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/.hidden"],
            "the class folder .*/test/b is empty",
        ),
        (["a\n/1.png", "b/1.png"], "cannot be printed: rename it"),
        (
            [unicodedata.normalize(form, "é") + "/1.png" for form in ("NFC", "NFD")],
            "has two folders with the name é: rename one",
        ),
    ],
)
def test_another_layout_is_refused_in_one_sentence(paths: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        list_images(empty_files(tmp_path, *paths))
    assert "\n" not in str(caught.value)


def test_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist: give --data folder:PATH"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError, match="does not exist"):
        list_images(write_classes(tmp_path, "ab", 1) / "a" / "000.png")
