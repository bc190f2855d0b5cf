"""What was named on the command line -> the files to classify, one by one: nothing here holds them all."""

import fnmatch
import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import BinaryIO, TypeVar

T = TypeVar("T")

EXTENSIONS = frozenset(
    (
        ".apng",
        ".avif",
        ".avifs",
        ".bmp",
        ".gif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".mpo",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
    )
)
"""Of the formats that are accepted; by them pictures are told from other files in a folder."""

STDIN = "-"

# Entries of a folder are sorted; beyond so many, piece by piece, so that memory has an end.
_SORTED = 65_536
_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Lost:
    """Something named that gives no files, and why."""

    path: str
    reason: str


def expand(arguments: Sequence[str], listed: Iterable[str] = ()) -> Iterator[str | Lost]:
    """The files that the arguments name, in their order.

    Args:
        arguments: files; folders, for the pictures in them and in those below, hidden ones left out; patterns, for
            shells that do not expand them; `STDIN` for the files and folders `listed`.
        listed: see there.

    Yields:
        A file's path, as it was named; or, in its place, what gives none.
    """
    for argument in arguments:
        if argument == STDIN:
            for path in listed:
                yield from _named(path)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            yield from _or_lost(_matching(argument), argument, "nothing matches this pattern")
        else:
            yield from _named(argument)


def listed_in(stream: BinaryIO, *, end: bytes = b"\n") -> Iterator[str]:
    """The paths in a list, each given as soon as it is there; empty ones are skipped."""
    if end == b"\n":
        lines: Iterable[bytes] = iter(stream.readline, b"")
    else:
        lines = _split(stream, end)
    for line in lines:
        path = line.removesuffix(end)
        if path:
            yield os.fsdecode(path)


def _split(stream: BinaryIO, end: bytes) -> Iterator[bytes]:
    rest = b""
    while chunk := os.read(stream.fileno(), _CHUNK):
        *whole, rest = (rest + chunk).split(end)
        yield from whole
    yield rest


def _named(path: str) -> Iterator[str | Lost]:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # the latter for a NUL in it
        yield Lost(path, reason_of(error))
        return
    if stat.S_ISDIR(mode):
        yield from _or_lost(_below(path, _is_picture), path, "no pictures are in this folder")
    else:
        yield path


def _or_lost(files: Iterator[str | Lost], argument: str, reason: str) -> Iterator[str | Lost]:
    """The files, or the loss of what should have named some."""
    first = next(files, None)
    if first is None:
        yield Lost(argument, reason)
    else:
        yield first
        yield from files


def _matching(pattern: str) -> Iterator[str | Lost]:
    """As a shell would expand it, which follows no link where `**` stands for any folders."""
    parts = pattern.split("/")
    if "**" not in parts:
        for path in _in_pieces(glob.iglob(pattern), str):
            yield from _named(path)
        return
    first = parts.index("**")
    base, rest = "/".join(parts[:first]), parts[first:]
    for folder in _in_pieces(glob.iglob(base), str) if glob.has_magic(base) else [base or "."]:
        for found in _below(folder, partial(_fits_below, folder, rest)):
            yield found if base or isinstance(found, Lost) else found.removeprefix("./")


def _fits_below(folder: str, pattern: Sequence[str], path: str) -> bool:
    return _fits(path[len(folder) + 1 :].split("/"), pattern)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path are as those of a pattern say."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _is_picture(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def _below(folder: str, fits: Callable[[str], bool]) -> Iterator[str | Lost]:
    """The files in a folder and in those below that fit, by name; links to folders are not followed."""
    stack = [_entries(folder)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
        elif isinstance(entry, Lost):
            yield entry
        elif entry.is_dir(follow_symlinks=False):
            stack.append(_entries(entry.path))
        elif fits(entry.path) and not _is_other(entry):
            yield entry.path


def _in_pieces(items: Iterator[T], key: Callable[[T], str]) -> Iterator[T]:
    """Sorted, so many at a time."""
    while piece := sorted(islice(items, _SORTED), key=key):
        yield from piece


def _entries(folder: str) -> Iterator["os.DirEntry[str] | Lost"]:
    try:
        with os.scandir(folder) as entries:
            visible = (entry for entry in entries if not entry.name.startswith("."))
            yield from _in_pieces(visible, lambda entry: entry.name)
    except OSError as error:
        yield Lost(folder, reason_of(error))


def _is_other(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a folder by a link, a socket, a pipe or a device; not a broken link: of that, reading tells."""
    try:
        mode = entry.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode)


class UnfitFile(Exception):
    """A file that holds nothing, or too much; the message is a sentence."""


def read_file(path: str, max_bytes: int) -> bytes:
    """The bytes of a file, and never more than the limit: a pipe or a device may have no end.

    Raises:
        OSError, ValueError: it cannot be read.
        UnfitFile: it is empty, or larger than the limit.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, max_bytes) + 1)
        if len(data) > size:  # not a file of that size, after all
            data += file.read(max_bytes + 1 - len(data))
    if not data:
        raise UnfitFile("it is empty")
    if len(data) > max_bytes:
        raise UnfitFile(f"it has more than {max_bytes:,} bytes")
    return data


def reason_of(error: Exception) -> str:
    """Why a file or folder cannot be read."""
    if isinstance(error, UnfitFile):
        return str(error)
    return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
