"""The file of predictions: what it keeps, and what it refuses."""

import sqlite3
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from app.feedback.store import Limits, Store, Stored, StoreError

ENDLESS = Limits(rows=10**9, size=10**12, seconds=10**9)


def prediction(number: int, *, position: int = 0, image: bytes | None = None, age: float = 0.0) -> Stored:
    return Stored(f"id-{number}", position, time.time() - age, "net", "0123456789ab", "cat", 0.75, image=image)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feedback.sqlite"


def numbers(store: Store) -> list[int]:
    """Of the requests that are stored, up to 100."""
    return [number for number in range(100) if store.find(f"id-{number}", 0)]


def test_a_prediction_is_found_by_its_request_and_position(path: Path) -> None:
    with Store(path) as store:
        store.add([prediction(1), prediction(1, position=1, image=b"pixels")])
        assert store.find("id-1", 2) is None
        assert store.find("id-2", 0) is None
        found = store.find("id-1", 1)
        assert found is not None
        assert found[:2] == ("id-1", 1)
        assert found[3:] == ("net", "0123456789ab", "cat", 0.75, None, None, False), "without the image"


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    with Store(path) as store:
        store.add([prediction(1)])
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


@pytest.mark.parametrize(
    ("changes", "reused"),
    [
        ({}, False),
        ({"confidence": 0.75001, "time": 0.0}, False),
        ({"confidence": 0.76}, True),
        ({"predicted": "dog"}, True),
        ({"version": "ba9876543210"}, True),
        ({"model": "other"}, True),
    ],
)
def test_the_first_prediction_of_a_request_is_kept(path: Path, changes: dict[str, Any], reused: bool) -> None:
    with Store(path) as store:
        store.add([prediction(1, image=b"first")])
        store.set_label("id-1", 0, "dog")
        store.add([prediction(1, image=b"second")._replace(**changes), prediction(2)])
        (row,) = store.labelled()
        assert (row.predicted, row.label, row.image, row.reused) == ("cat", "dog", b"first", reused)
        found = store.find("id-1", 0)
        assert found is not None
        assert found.reused is reused
        assert numbers(store) == [1, 2]


def test_a_file_of_an_earlier_release_is_used(path: Path) -> None:
    with Store(path) as store:
        store.add([prediction(1)])
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE predictions DROP COLUMN reused")
    database.close()
    with Store(path) as store, Store(path) as another:
        store.add([prediction(1)._replace(predicted="dog"), prediction(2)])
        found = another.find("id-1", 0)
        assert found is not None
        assert found.reused


def test_a_label_can_be_changed_and_the_first_one_is_reported(path: Path) -> None:
    with Store(path) as store:
        store.add([prediction(1, image=b"pixels"), prediction(2)])
        assert store.set_label("id-1", 0, "dog")
        assert not store.set_label("id-1", 0, "cat")
        (row,) = store.labelled()
        assert (row.request_id, row.label, row.image) == ("id-1", "cat", b"pixels")


def test_it_is_open_again_with_its_contents(path: Path) -> None:
    with Store(path) as store:
        store.add([prediction(1)])
    with Store(path, create=False) as store:
        assert numbers(store) == [1]


def test_the_oldest_rows_are_removed(path: Path) -> None:
    with Store(path) as store:
        store.add(prediction(number) for number in range(10))
        store.prune(ENDLESS._replace(rows=3))
        assert numbers(store) == [7, 8, 9]


def test_old_predictions_are_removed(path: Path) -> None:
    with Store(path) as store:
        store.add([prediction(1, age=100), prediction(2, age=10)])
        store.prune(ENDLESS._replace(seconds=50))
        assert numbers(store) == [2]


def test_the_file_stays_below_its_limit(path: Path) -> None:
    limits = ENDLESS._replace(size=1_000_000)
    with Store(path) as store:
        for number in range(60):
            store.add([prediction(number, image=bytes(50_000))])
            store.prune(limits)
            assert store.size() <= 1_100_000
        found = numbers(store)
        assert found == list(range(min(found), 60))
        assert 10 < len(found) < 20
    assert path.stat().st_size < 1_300_000


def test_removed_content_is_overwritten(path: Path) -> None:
    with Store(path) as store:
        store.add([prediction(1, image=b"secret" * 5000), prediction(2, image=b"other" * 5000)])
        assert store.remove(["id-1", "id-9"]) == 1
        assert numbers(store) == [2]
        assert not any(b"secret" in file.read_bytes() for file in path.parent.iterdir())
        assert store.remove() == 1
        assert numbers(store) == []
        assert not any(b"other" in file.read_bytes() for file in path.parent.iterdir())


def test_several_connections_write(path: Path) -> None:
    def write(first: int) -> None:
        with Store(path) as store:
            for number in range(first, first + 25):
                store.add([prediction(number)])

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 25, 50, 75)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store(path) as store:
        assert numbers(store) == list(range(100))


def test_many_connections_may_create_the_file_at_once(tmp_path: Path) -> None:
    def create(path: Path) -> None:
        with Store(path) as store:
            assert numbers(store) == []

    with ThreadPoolExecutor(6) as pool:
        for number in range(100):
            list(pool.map(create, [tmp_path / f"{number}.sqlite"] * 6))


def test_a_file_of_another_kind_is_refused_and_stays_as_it_is(path: Path) -> None:
    path.write_bytes(b"some notes" * 1000)
    with pytest.raises(StoreError, match=r"cannot be used .file is not a database"):
        Store(path)
    assert path.read_bytes() == b"some notes" * 1000
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="is not a feedback store of this version"):
        Store(path)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_opened_is_named(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no feedback store"):
        Store(path, create=False)
    with pytest.raises(StoreError, match=r"cannot be opened .No such file or directory"):
        Store(path / "missing")
    with pytest.raises(StoreError, match=r"cannot be opened .Is a directory"):
        Store(path.parent)


def test_it_knows_that_its_file_was_replaced(path: Path) -> None:
    with Store(path) as store:
        assert store.exists()
        path.rename(path.with_suffix(".old"))
        assert not store.exists()
        path.touch()
        assert not store.exists()
