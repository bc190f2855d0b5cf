import os
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


@pytest.mark.parametrize(
    "names",
    [
        {"Train": "train", "VAL": "holdout"},
        {"train": "train", "valid": "holdout", "test": "test"},
        {"training": "train", "validation": "holdout", "testing": "test"},
        {"TRAIN": "train", "Test": "test"},
    ],
)
def test_parts_are_recognised_by_the_names_that_others_give_them(names: dict[str, str], tmp_path: Path) -> None:
    listing = list_images(empty_files(tmp_path, *(f"{name}/{label}/1.png" for name in names for label in "ab")))
    assert listing.labels == ("a", "b")
    assert {file.path.partition("/")[0]: file.part for file in listing.files} == names
    assert sorted(listing.parts) == sorted(names.values())


def test_what_is_neither_class_nor_part_is_named(tmp_path: Path) -> None:
    parts = [f"{part}/{label}/1.png" for part in ("train", "val") for label in "ab"]
    listing = list_images(empty_files(tmp_path, *parts, "extra/a/1.png", "README.md", "train/a.csv", ".git/x"))
    assert listing.unused == ("README.md", "extra/", "train/a.csv")
    assert list_images(empty_files(tmp_path / "two", "a/1.png", "b/1.png", "labels.txt")).unused == ("labels.txt",)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root = empty_files(tmp_path / "root", "a/1.png", "b/1.png")
    elsewhere = empty_files(tmp_path / "elsewhere", "2.png", "deep/3.png")
    (root / "a" / "linked").symlink_to(elsewhere)
    (root / "a" / "linked" / "loop").symlink_to(root / "a")
    (root / "c").symlink_to(elsewhere)
    listing = list_images(root)
    assert [file.path for file in listing.files] == [
        "a/1.png", "a/linked/2.png", "a/linked/deep/3.png", "b/1.png", "c/2.png", "c/deep/3.png", "c/loop/1.png",
    ]  # fmt: skip
    assert listing.labels == ("a", "b", "c")


def test_special_files_and_links_to_nothing_are_unreadable(tmp_path: Path) -> None:
    root = empty_files(tmp_path, "a/1.png", "b/1.png")
    os.mkfifo(root / "a" / "pipe.png")
    (root / "a" / "gone.png").symlink_to(tmp_path / "none")
    (root / "a" / "self.png").symlink_to("self.png")
    listing = list_images(root)
    assert {file.path: file.unreadable for file in listing.files if file.unreadable} == {
        "a/gone.png": "it is a link that leads to nothing",
        "a/pipe.png": "it is not a regular file",
        "a/self.png": "it is a link that leads to nothing",
    }
    (root / "c").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match=r"the link .*/c leads to nothing: correct or remove it"):
        list_images(root)


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
        (
            [f"{part}/{label}/1.png" for part in ("train", "val", "valid") for label in "ab"],
            "/val and .*/valid are both the same part: join them",
        ),
        (
            [f"{part}/{label}/1.png" for part in ("Val", "test") for label in "ab"],
            r"all folders in .* have names of parts \(Val, test\), and none is train: rename",
        ),
        (["train/a/1.png", "train/b/1.png", "test/1.png"], "test has no folders of classes: put the images of each"),
        (["set/a/1.png", "set/b/1.png"], "only one class, set: .* or name --data folder:.*/set"),
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
    with pytest.raises(DataError, match=r"/a/000.png is a file: give --data folder:PATH a folder of images"):
        list_images(write_classes(tmp_path, "ab", 1) / "a" / "000.png")


TABLE = (
    "split;File Name;note;Label\ntrain;a/1.png;x;cat\nTRAIN;../2.png;;dog\nval;a/3.png;;dog\nval;a/4.png;;cat\n;;;\n"
)


def table(tmp_path: Path, text: str, name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    """A table beside files of its rows."""
    path = empty_files(tmp_path / "set", *(f"a/{number}.png" for number in range(9)), "../2.png") / name
    path.write_text(text, encoding)
    return path


def test_a_table_names_files_and_classes(tmp_path: Path) -> None:
    absolute = empty_files(tmp_path, "elsewhere.png") / "elsewhere.png"
    text = f"image\tclass\na/1.png\tÄpfel\n{absolute}\tcat\nnone.png\tcat\n\0\tcat\n"
    listing = list_images(table(tmp_path, text, "labels.tsv", "utf-8-sig"))
    assert listing.labels == ("cat", "Äpfel")
    assert (listing.base, listing.parts) == (tmp_path / "set", ())
    assert [(file.path, file.label, bool(file.unreadable)) for file in listing.files] == [
        ("\0", 0, True), (str(absolute), 0, False), ("none.png", 0, True), ("a/1.png", 1, False),
    ]  # fmt: skip
    listing = list_images(table(tmp_path, TABLE))
    assert [(file.path, file.label, file.part) for file in listing.files] == [
        ("a/1.png", 0, "train"), ("../2.png", 1, "train"), ("a/4.png", 0, "holdout"), ("a/3.png", 1, "holdout"),
    ]  # fmt: skip
    assert (listing.parts, listing.unused) == (("train", "holdout"), ("line 6",))
    one = list_images(table(tmp_path, "path,label,split\na/1.png,a,test\na/2.png,b,test\n"))
    assert (one.parts, {file.part for file in one.files}) == ((), {"train"}), "as for a folder of one part"


@pytest.mark.parametrize(
    ("text", "encoding", "sentence"),
    [
        ("", "utf-8", r"no column with one of the names path, file, .* in its first line \(it is empty\)"),
        ("a/1.png,cat\na/2.png,dog\n", "utf-8", r"in its first line \(a/1.png, cat\): name its columns"),
        ("path,note\na/1.png,cat\n", "utf-8", "no column with one of the names label, class, "),
        ("path,label\na/1.png,cat\na/2.png,\n", "utf-8", "has 1 classes with files: name at least two"),
        ("path,label\na/1.png,Äpfel\n", "latin-1", r"is not a table in UTF-8 \(.*\): save it as CSV"),
        ('path,label\na/1.png,"a\nb"\n', "utf-8", "the name of the class in line 3 of .* cannot be printed"),
        ("path,label,split\na/1.png,cat,fold1\n", "utf-8", "line 2 of .* is of the part 'fold1': write train, val or"),
        (TABLE.replace("train;", "test;", 1), "utf-8", "has no file of the class cat in the part train: add one"),
        (TABLE.replace("train;", "test;", 1).replace("TRAIN", "test"), "utf-8", "several parts, and none is train"),
    ],
)
def test_another_table_is_refused_in_one_sentence(text: str, encoding: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence) as caught:
        list_images(table(tmp_path, text, encoding=encoding))
    assert "\n" not in str(caught.value)
