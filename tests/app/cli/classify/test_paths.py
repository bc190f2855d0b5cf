"""From arguments to files."""

import contextlib
import io
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from app.cli.classify.paths import EXTENSIONS, Lost, UnfitFile, expand, listed_in, read_file
from model import FORMATS

GONE = "it cannot be read (No such file or directory)"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The working folder: pictures and others, some of them hidden, and links."""
    for name in (
        *("b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.webp", "sub/deep/d.tiff", "sub/readme"),
        *(".git/e.png", "empty/none.txt", "odd[1].png"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "link.png").symlink_to("b.png")
    (tmp_path / "broken.png").symlink_to("nowhere")
    (tmp_path / "sub" / "loop").symlink_to("..")
    os.mkfifo(tmp_path / "pipe.png")
    with contextlib.chdir(tmp_path):
        yield tmp_path


IN_FOLDER = ["a.JPG", "b.png", "broken.png", "link.png", "odd[1].png", "sub/c.webp", "sub/deep/d.tiff"]


def test_the_extensions_are_those_of_the_formats() -> None:
    kinds = {*FORMATS, "MPO"}
    assert {ending for ending, kind in Image.registered_extensions().items() if kind in kinds} == EXTENSIONS


@pytest.mark.usefixtures("folder")
def test_a_folder_gives_its_pictures_by_name() -> None:
    assert list(expand(["."])) == [f"./{name}" for name in IN_FOLDER]


@pytest.mark.usefixtures("folder")
def test_what_is_named_is_taken_in_its_order_whatever_it_is() -> None:
    named = ["sub/readme", ".hidden.png", "odd[1].png", "pipe.png", "sub/deep", "b.png", "b.png"]
    assert list(expand(named)) == [*named[:4], "sub/deep/d.tiff", "b.png", "b.png"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("[a-o]*.png", ["b.png", Lost("broken.png", GONE), "link.png", "odd[1].png"]),
        ("s*", ["sub/c.webp", "sub/deep/d.tiff"]),
        ("sub/**", ["sub/c.webp", "sub/deep/d.tiff", "sub/readme"]),
        ("**/*.tiff", ["sub/deep/d.tiff"]),
        ("**/d*/*", ["sub/deep/d.tiff"]),
        ("**/b.png", ["b.png"]),
        ("[se]*/**/*[cd].*", ["sub/c.webp", "sub/deep/d.tiff"]),
    ],
)
def test_patterns_are_expanded_as_by_a_shell(pattern: str, files: list[str | Lost]) -> None:
    assert list(expand([pattern])) == files


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("nope.png", GONE),
        ("b.png/c.png", "it cannot be read (Not a directory)"),
        ("sub/loop/broken.png", GONE),
        ("nul\0.png", "it cannot be read (embedded null byte)"),
        ("empty", "no pictures are in this folder"),
        ("*.gif", "nothing matches this pattern"),
    ],
)
def test_what_gives_no_files_is_told_in_its_place(argument: str, reason: str) -> None:
    assert list(expand(["b.png", argument, "a.JPG"])) == ["b.png", Lost(argument, reason), "a.JPG"]


@pytest.fixture
def nobody() -> Iterator[None]:
    """Without rights, for root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_permission_is_told_of_and_its_neighbours_are_read(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path_factory.mktemp("rights")
    for name in ("a", "locked", "z"):
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(b"x")
    folder.chmod(0o755)
    (folder / "locked").chmod(0)
    with contextlib.chdir(folder):  # pytest's own folders above let nobody else in
        request.getfixturevalue("nobody")
        assert list(expand(["."])) == [
            "./a/x.png",
            Lost("./locked", "it cannot be read (Permission denied)"),
            "./z/x.png",
        ]


@pytest.mark.usefixtures("folder")
def test_a_list_may_name_folders_and_names_that_look_like_patterns() -> None:
    listed = listed_in(io.BytesIO(b"odd[1].png\n\nsub\n*.png"))
    assert list(expand(["a.JPG", "-"], listed)) == [
        *("a.JPG", "odd[1].png", "sub/c.webp", "sub/deep/d.tiff"),
        Lost("*.png", GONE),
    ]


def test_a_list_ended_by_nul_is_given_as_it_comes_and_may_hold_any_name() -> None:
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as stream:
        paths = listed_in(stream, end=b"\0")
        os.write(theirs, b"a\nb.png\0\0\xff.p")
        assert next(paths) == "a\nb.png"
        os.write(theirs, b"ng\0last")
        assert next(paths) == "\udcff.png"
        os.close(theirs)
        assert list(paths) == ["last"]


def test_a_large_folder_takes_no_memory_for_its_files(tmp_path: Path) -> None:
    def peak(files: Iterator[str | Lost]) -> int:
        tracemalloc.start()
        count = sum(1 for _ in files)
        assert count == 30 * 100
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in range(100):
            (folder / f"{name}.png").touch()
    # A hundred entries at a time, each of some 300 bytes.
    assert peak(expand([str(tmp_path)])) < 150_000


def test_no_more_of_a_file_is_read_than_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(str(path), 5) == b"12345"
    with pytest.raises(UnfitFile, match="it has more than 4 bytes"):
        read_file(str(path), 4)
    with pytest.raises(UnfitFile, match="it has more than 1,000,000 bytes"):
        read_file("/dev/zero", 1_000_000)
    path.write_bytes(b"")
    with pytest.raises(UnfitFile, match="it is empty"):
        read_file(str(path), 5)


def test_a_pipe_can_be_read() -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"a picture")
    os.close(theirs)
    try:
        assert read_file(f"/dev/fd/{ours}", 100) == b"a picture"
    finally:
        os.close(ours)
