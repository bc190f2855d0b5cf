import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from model.bundle import check_new, open_bundle, to_json, update_bundle, write_bundle
from model.card import ModelCard
from model.errors import CardError, IntegrityError, SaveError
from tests.limits import files_limited_to
from tests.memory import forget_peak, peak, resident


def everything_in(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def test_a_complete_bundle_opens(copy: Path) -> None:
    bundle = open_bundle(copy)
    assert bundle.folder == copy
    assert bundle.card.name == "tiny"


@pytest.mark.parametrize("place", [0, -1])
def test_one_flipped_bit_of_the_weights_is_an_error(copy: Path, place: int) -> None:
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[place] ^= 1
    weights.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.safetensors does not have the SHA-256 on its card"):
        open_bundle(copy)


def test_missing_weights_are_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(IntegrityError, match=r"model\.safetensors is missing"):
        open_bundle(copy)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["card.json", "model.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises((CardError, IntegrityError), match="not a regular file"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a/b", ".hidden", ""])
def test_the_names_of_files_have_no_path(copy: Path, name: str) -> None:
    card = json.loads((copy / "card.json").read_text())
    card["files"][name] = "0" * 64
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(CardError, match="files"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "content",
    [
        '{"labels": [' + " " * 8_000_000,
        "{" + '"a": 1, ' * 30_000 + '"b": 1}',
        '{"labels": [' + "[]," * 2_000_000 + "[]]}",
        '{"self_test": {"scores": [' + "1," * 2_000_000 + "1]}}",
    ],
    ids=["large", "many fields", "many lists", "many numbers"],
)
def test_a_hostile_card_takes_little_time_and_memory(copy: Path, content: str) -> None:
    (copy / "card.json").write_text(content)
    forget_peak("self")
    before, began = resident("self"), time.process_time()
    with pytest.raises(CardError):
        open_bundle(copy)
    assert time.process_time() - began < 3
    assert peak("self") - before < 500_000_000  # 2 GB with a report of each wrong item


def test_a_folder_without_a_card_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"card\.json cannot be read"):
        open_bundle(tmp_path)


def test_a_new_bundle_contains_the_files_and_is_world_readable(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "er" / "new"
    write_bundle(folder, {"a.txt": b"A", "plots/b.txt": b"B"})
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "a.txt",
        "plots/b.txt",
    }
    assert (folder / "plots/b.txt").read_bytes() == b"B"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in folder.parent.iterdir()] == ["new"]


def test_a_card_is_written_with_each_row_on_one_line(tiny_bundle: Path) -> None:
    card = open_bundle(tiny_bundle).card
    text = to_json(card)
    assert ModelCard.model_validate_json(text) == card
    lines = [line.strip() for line in text.splitlines()]
    for row in card.metrics.confusion:
        assert str(row) in {line.rstrip(",") for line in lines}
    for part in card.metrics.reliability:
        assert part.model_dump_json().replace(":", ": ").replace(",", ", ") in text


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "file").write_bytes(b"data")
    with pytest.raises(SaveError, match="old exists: choose another --out"):
        write_bundle(folder, {"a.txt": b"A"})
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_a_failed_write_leaves_no_files(tmp_path: Path) -> None:
    with (
        files_limited_to(10_000),
        pytest.raises(SaveError, match=r"new \(File too large\): choose another --out"),
    ):
        write_bundle(tmp_path / "new", {"small": b"fits", "large": bytes(20_000)})
    assert not any(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_leaves_no_files(small_disk: Path) -> None:
    with pytest.raises(SaveError, match=r"\(No space left on device\): free disk space or choose another --out"):
        write_bundle(small_disk / "new", {"small": b"fits", "large": bytes(200_000)})
    assert not any(small_disk.iterdir())
    write_bundle(small_disk / "new", {"small": b"fits"})


def test_an_update_makes_the_folders_that_it_writes_to(copy: Path) -> None:
    """Some copies of a bundle lack plots/, as the container does."""
    card = open_bundle(copy).card
    shutil.rmtree(copy / "plots")
    update_bundle(copy, {"plots/curves.png": b"new"}, card)
    assert (copy / "plots" / "curves.png").read_bytes() == b"new"
    (copy / "blocked").write_bytes(b"")
    before = everything_in(copy)
    with pytest.raises(SaveError, match=r"cannot write to .*copy \(Not a directory\): change a copy of the bundle$"):
        update_bundle(copy, {"more/new.txt": b"new", "blocked/new.txt": b"new"}, card)
    assert everything_in(copy) == before


@pytest.mark.parametrize("write", ["new", "update"])
def test_files_and_names_are_on_the_disk_before_and_after_the_folder_is_changed(
    write: str, copy: Path, tmp_path: Path
) -> None:
    """The calls of the operating system, in their order."""
    calls: list[str] = []

    def watch(_: object, event: str, function: Any) -> None:
        if event == "c_call" and function in (os.fsync, os.rename, os.replace):
            calls.append(function.__name__)

    card = open_bundle(copy).card
    sys.setprofile(watch)
    try:
        if write == "new":
            write_bundle(tmp_path / "new", {"card.json": b"{}", "plots/a.png": b"1"})
        else:
            update_bundle(copy, {"README.md": b"new", "plots/curves.png": b"1"}, card)
    finally:
        sys.setprofile(None)
    # Files, their folders, the name of the bundle. The three files of the update are replaced one by one.
    expected = {
        "new": "fsync fsync fsync fsync rename fsync",
        "update": "fsync fsync fsync replace replace replace fsync fsync",
    }
    assert " ".join(calls) == expected[write]


def test_a_folder_that_cannot_be_created_is_a_save_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for write in (check_new, lambda folder: write_bundle(folder, {"a.txt": b"A"})):
        with pytest.raises(SaveError, match="cannot write"):
            write(tmp_path / "file" / "new")
        with pytest.raises(SaveError, match="file exists: choose another --out"):
            write(tmp_path / "file")


def test_the_check_of_a_new_folder_leaves_no_files(tmp_path: Path) -> None:
    check_new(tmp_path / "deep" / "new")
    assert not any(tmp_path.iterdir())


def test_a_failed_update_does_not_change_the_bundle(copy: Path) -> None:
    card = open_bundle(copy).card
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    with files_limited_to(100_000), pytest.raises(SaveError, match=r"\(File too large\): change a copy of the bundle"):
        update_bundle(copy, {"README.md": b"new", "openvino.bin": bytes(200_000)}, card)
    assert {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()} == before


def test_an_update_that_fails_after_a_replacement_is_undone(copy: Path) -> None:
    """A file cannot replace a folder, which is noticed when README.md and new.txt are in place."""
    card = open_bundle(copy).card
    (copy / "folder").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in copy.rglob("*")}
    with pytest.raises(SaveError, match="cannot write to"):
        update_bundle(copy, {"README.md": b"new", "new.txt": b"new", "folder": b"new"}, card)
    assert {path: path.is_file() and path.read_bytes() for path in copy.rglob("*")} == before
    open_bundle(copy)
