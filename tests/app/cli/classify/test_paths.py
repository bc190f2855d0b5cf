"""Command-line arguments -> files."""

import contextlib
import io
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from app.cli.classify.paths import BadPath, FileSizeError, Skipped, find_files, read_file, read_path_list
from model import EXTENSIONS, FORMATS

GONE = "it cannot be read (No such file or directory)"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The working folder: images and other files, some of them hidden, and links."""
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
def test_a_folder_stands_for_its_images_sorted_by_name() -> None:
    assert list(find_files(["."])) == [f"./{name}" for name in IN_FOLDER]


@pytest.mark.usefixtures("folder")
def test_a_folder_behind_links_is_visited_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "o.png").write_bytes(b"x")
    for name in ("first", "second"):
        Path("sub", name).symlink_to(other)
    found = [file for file in find_files(["."]) if str(file).endswith("o.png")]
    assert found == ["./sub/first/o.png"]


@pytest.mark.usefixtures("folder")
def test_skipped_files_are_counted_by_extension() -> None:
    skipped = Skipped()
    list(find_files(["."], skipped=skipped))
    assert str(skipped) == "3 files: .txt 2, no extension 1"


@pytest.mark.usefixtures("folder")
def test_named_files_are_yielded_in_order_whatever_they_are() -> None:
    named = ["sub/readme", ".hidden.png", "odd[1].png", "pipe.png", "sub/deep", "b.png", "b.png"]
    assert list(find_files(named)) == [*named[:4], "sub/deep/d.tiff", "b.png", "b.png"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("pattern", "files"),
    [
        ("[a-o]*.png", ["b.png", BadPath("broken.png", GONE), "link.png", "odd[1].png"]),
        ("s*", ["sub/c.webp", "sub/deep/d.tiff"]),
        ("sub/**", ["sub/c.webp", "sub/readme", "sub/deep/d.tiff"]),
        ("**/*.tiff", ["sub/deep/d.tiff"]),
        ("**/d*/*", ["sub/deep/d.tiff"]),
        ("**/b.png", ["b.png"]),
        ("[se]*/**/*[cd].*", ["sub/c.webp", "sub/deep/d.tiff"]),
    ],
)
def test_patterns_are_expanded_like_in_a_shell(pattern: str, files: list[str | BadPath]) -> None:
    assert list(find_files([pattern])) == files


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("nope.png", GONE),
        ("b.png/c.png", "it cannot be read (Not a directory)"),
        ("sub/loop/broken.png", GONE),
        ("nul\0.png", "it cannot be read (embedded null byte)"),
        ("empty", "no images are in this folder"),
        ("*.gif", "nothing matches this pattern"),
    ],
)
def test_a_bad_path_is_yielded_in_place(argument: str, reason: str) -> None:
    assert list(find_files(["b.png", argument, "a.JPG"])) == ["b.png", BadPath(argument, reason), "a.JPG"]


def test_a_pattern_may_begin_at_the_root() -> None:
    path = next(find_files(["/**"]))
    assert isinstance(path, str)
    assert path.startswith("/")


@pytest.mark.usefixtures("folder")
def test_files_of_a_folder_precede_those_of_its_subfolders() -> None:
    Path("a").mkdir()
    Path("a/z.png").write_bytes(b"x")
    assert list(find_files(["."])) == [f"./{name}" for name in (*IN_FOLDER[:5], "a/z.png", *IN_FOLDER[5:])]


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """An effective user without privileges, since root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_without_permission_is_reported_and_the_others_are_read(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path_factory.mktemp("rights")
    for name in ("a", "locked", "z"):
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(b"x")
    folder.chmod(0o755)
    (folder / "locked").chmod(0)
    with contextlib.chdir(folder):  # other users cannot enter the folders above, which are pytest's
        request.getfixturevalue("unprivileged")
        assert list(find_files(["."])) == [
            "./a/x.png",
            BadPath("./locked", "it cannot be read (Permission denied)"),
            "./z/x.png",
        ]


@pytest.mark.usefixtures("folder")
def test_a_list_may_contain_folders_and_names_that_look_like_patterns() -> None:
    listed = read_path_list(io.BytesIO(b"odd[1].png\n\nsub\n*.png"))
    assert list(find_files(["a.JPG", "-"], listed)) == [
        *("a.JPG", "odd[1].png", "sub/c.webp", "sub/deep/d.tiff"),
        BadPath("*.png", GONE),
    ]


def test_a_list_with_nul_is_read_incrementally_and_may_contain_any_name() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as stream:
        paths = read_path_list(stream, end=b"\0")
        os.write(write_end, b"a\nb.png\0\0\xff.p")
        assert next(paths) == "a\nb.png"
        os.write(write_end, b"ng\0last")
        assert next(paths) == "\udcff.png"
        os.close(write_end)
        assert list(paths) == ["last"]


def test_memory_is_bounded_by_the_largest_folder(tmp_path: Path) -> None:
    def peak(files: Iterator[str | BadPath]) -> int:
        tracemalloc.start()
        count = sum(1 for _ in files)
        assert count == 30 * 100
        bytes_used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_used

    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in range(100):
            (folder / f"{name}.png").touch()
    # The 3,000 paths would take 300,000 bytes.
    assert peak(find_files([str(tmp_path)])) < 150_000


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(str(path), 5) == b"12345"
    with pytest.raises(FileSizeError, match="it has more than 4 bytes"):
        read_file(str(path), 4)
    with pytest.raises(FileSizeError, match="it has more than 1,000,000 bytes"):
        read_file("/dev/zero", 1_000_000)
    path.write_bytes(b"")
    with pytest.raises(FileSizeError, match="it is empty"):
        read_file(str(path), 5)


def test_a_pipe_can_be_read() -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"content")
    os.close(write_end)
    try:
        assert read_file(f"/dev/fd/{read_end}", 100) == b"content"
    finally:
        os.close(read_end)
