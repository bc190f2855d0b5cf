"""From a store to a folder that is a data set."""

import csv
from pathlib import Path

import pytest

from app.feedback.export import CSV_FILE, Exported, export
from app.feedback.store import NONE, Store, Stored, StoreError
from model.training.data.listing import list_images
from model.training.outliers import load_outliers
from tests.app.fakes import image_file

TIME = 1_700_000_000.25


def stored(request_id: str, label: str | None, image: bytes | None, position: int = 0) -> Stored:
    return Stored(request_id, position, TIME, "net", "0123456789ab", "cat", 0.5, label, image)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_the_folder_is_a_data_set(store: Store, tmp_path: Path) -> None:
    png, jpeg = image_file(1), image_file(2, kind="JPEG")
    with store:
        store.add(
            [
                stored("a", "cat", png),
                stored("a", "dog", jpeg, 1),
                stored(".b", "dog", image_file(3, kind="TIFF")),
                stored("c", "dog", None),
                stored("d", None, png),
            ]
        )
        assert export(store, tmp_path / "images") == Exported(rows=4, images=3, others=0)
    listing = list_images(tmp_path / "images")
    assert listing.labels == ("cat", "dog")
    paths = [file.path for file in listing.files]
    assert paths == ["cat/a-0.png", "dog/_.b-0.tif", "dog/a-1.jpg"]
    assert (tmp_path / "images" / "cat" / "a-0.png").read_bytes() == png
    with (tmp_path / "images" / CSV_FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["cat/a-0.png", "dog/a-1.jpg", "dog/_.b-0.tif", ""]
    assert rows[1] == {
        "request_id": "a",
        "index": "1",
        "time": "2023-11-14T22:13:20.250+00:00",
        "model": "net",
        "version": "0123456789ab",
        "predicted": "cat",
        "confidence": "0.5",
        "label": "dog",
        "file": "dog/a-1.jpg",
    }


def test_images_of_none_of_the_classes_are_outliers_in_a_folder_of_their_own(store: Store, tmp_path: Path) -> None:
    with store:
        store.add(
            [
                stored("a", "cat", image_file(1)),
                stored("b", "none of these", image_file(2)),  # a class of this name
                stored(".c", NONE, image_file(3)),
                stored("d", NONE, None),
            ]
        )
        assert export(store, tmp_path / "images") == Exported(rows=4, images=2, others=1)
        (tmp_path / "images").rename(tmp_path / "moved")
        with pytest.raises(StoreError, match=r"images-none exists and is not an empty folder"):
            export(store, tmp_path / "images")
    assert list_images(tmp_path / "moved").labels == ("cat", "none of these")
    assert load_outliers(tmp_path / "images-none", side=32).about.images == 1
    with (tmp_path / "moved" / CSV_FILE).open(encoding="utf-8", newline="") as file:
        rows = [(row["label"], row["file"]) for row in csv.DictReader(file)]
    assert rows[2:] == [("none of these", "../images-none/_.c-0.png"), ("none of these", "")]


def test_labels_cannot_leave_the_folder(store: Store, tmp_path: Path) -> None:
    with store:
        store.add(
            [stored("a", "../../evil", image_file()), stored("b", "..", image_file()), stored("c", "\0", b"no image")]
        )
        export(store, tmp_path / "deep" / "images")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*-0.*")}
    assert found == {"deep/images/_.._.._evil/a-0.png", "deep/images/_../b-0.png", "deep/images/_/c-0.image"}


def test_without_labels_nothing_is_written(store: Store, tmp_path: Path) -> None:
    with store:
        store.add([stored("a", None, image_file())])
        with pytest.raises(StoreError, match="has no labels yet"):
            export(store, tmp_path / "images")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_folder_with_contents_is_not_touched(store: Store, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine").touch()
    with store:
        store.add([stored("a", "cat", image_file())])
        with pytest.raises(StoreError, match="is not an empty folder"):
            export(store, tmp_path / "images")
        (tmp_path / "empty").mkdir()
        assert export(store, tmp_path / "empty" / ".").images == 1
    assert (tmp_path / "empty" / "cat" / "a-0.png").exists()


def test_a_folder_that_cannot_be_written_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with store:
        store.add([stored("a", "cat", image_file())])
        with pytest.raises(StoreError, match="cannot be written"):
            export(store, tmp_path / "file" / "images")
