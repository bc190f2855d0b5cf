"""Command-line arguments -> paths of the files to classify.

Paths are generated as needed. Only the names in one folder, or the matches of one pattern, are in memory at a time.
"""

import fnmatch
import glob
import os
import stat
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from app.cli.classify.results import CommandError, plural

OTHER_EXTENSIONS = frozenset((".ico", ".jp2", ".jxl", ".psd", ".svg", ".dng", ".cr2", ".nef"))
"""Extensions of other image formats. Such a file in a folder gets a result with an error."""

STDIN = "-"

_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class BadPath:
    """A path or pattern that yields no files, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file that has been read, and the path that it is reported under."""

    path: str
    data: bytes


class Skipped:
    """Counts the files of folders that are skipped, by extension."""

    def __init__(self) -> None:
        self._extensions = Counter[str]()

    def add(self, path: str) -> None:
        self._extensions[os.path.splitext(path)[1].lower() or "no extension"] += 1

    def __str__(self) -> str:
        """Such as "3 files: .txt 2, no extension 1"; empty if there are none."""
        total = self._extensions.total()
        counts = ", ".join(f"{extension} {count:,}" for extension, count in self._extensions.most_common(5))
        return f"{plural(total, 'file')}: {counts}" if total else ""


def find_files(
    arguments: Sequence[str], listed: Iterable[str] = (), skipped: Skipped | None = None
) -> Iterator[str | BadPath]:
    """The files that the arguments name, in the order of the arguments.

    Args:
        arguments: each is a file; a folder, for the images in it and its subfolders except hidden ones; a pattern,
            for shells that do not expand patterns; or `STDIN`, for the files and folders in `listed`.
        listed: paths that are read from standard input; `STDIN` for an image there.
        skipped: counts the files of folders that are no images by their extension.

    Yields:
        The path of a file, or a BadPath in place of the files that an argument should have named. Files of a folder
        are sorted by name and precede those of its subfolders.
    """
    for argument in arguments:
        if argument == STDIN:
            for path in listed:
                yield from (path,) if path == STDIN else _files_at(path, skipped)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            yield from _or_bad_path(_expand_pattern(argument, skipped), argument, "nothing matches this pattern")
        else:
            yield from _files_at(argument, skipped)


def read_path_list(stream: BinaryIO, *, end: bytes = b"\n") -> Iterator[str]:
    """The paths in a stream, each as soon as its end is read. Empty ones are skipped.

    Args:
        stream: file paths in the file system's encoding.
        end: a byte that ends each path.

    Raises:
        CommandError: the paths end with NUL and should end with line breaks.
    """
    if end == b"\n":
        lines: Iterable[bytes] = iter(stream.readline, b"")
    else:
        lines = _split(stream, end)
    for line in lines:
        path = line.removesuffix(end)
        if b"\0" in path:
            raise CommandError("the paths on standard input end with NUL: add -0")
        if path:
            yield os.fsdecode(path)


def is_image(stream: BinaryIO) -> bool:
    """Whether a stream begins like an image and not like a list of paths. Nothing is consumed."""
    if not isinstance(stream, BufferedReader):
        return False
    start = stream.peek(12)[:12]
    return (
        start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*"))
        or (start[:4], start[8:12]) == (b"RIFF", b"WEBP")
        or (start[:2], start[6:10]) == (b"BM", bytes(4))
        or start[4:8] == b"ftyp"
    )


def _split(stream: BinaryIO, end: bytes) -> Iterator[bytes]:
    rest = b""
    while chunk := stream.read1(_CHUNK):  # type: ignore[attr-defined]
        *complete, rest = (rest + chunk).split(end)
        yield from complete
    yield rest


def _files_at(path: str, skipped: Skipped | None) -> Iterator[str | BadPath]:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL
        yield BadPath(path, describe_read_error(error))
        return
    if stat.S_ISDIR(mode):
        accept = partial(_has_image_extension, skipped=skipped)
        yield from _or_bad_path(_walk(path, accept), path, "no images are in this folder")
    else:
        yield path


def _or_bad_path(files: Iterator[str | BadPath], argument: str, reason: str) -> Iterator[str | BadPath]:
    """The files, or a BadPath if there are none."""
    first = next(files, None)
    if first is None:
        yield BadPath(argument, reason)
    else:
        yield first
        yield from files


def _expand_pattern(pattern: str, skipped: Skipped | None) -> Iterator[str | BadPath]:
    """The files that match a pattern.

    `**` does not go through glob.iglob(recursive=True): that follows symbolic links, in circles too, and hides errors.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        for path in sorted(glob.iglob(pattern)):
            yield from _files_at(path, skipped)
        return
    first = parts.index("**")
    base = "/".join((*parts[:first], ""))
    for folder in sorted(glob.iglob(base)) if glob.has_magic(base) else [base]:
        top = folder or "./"
        for file in _walk(top, partial(_matches_below, top, parts[first:])):
            yield file if folder or isinstance(file, BadPath) else file.removeprefix(top)


def _matches_below(folder: str, pattern: Sequence[str], path: str) -> bool:
    return _matches(path.removeprefix(folder).split("/"), pattern)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern. `**` matches any number of parts, none included."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _has_image_extension(path: str, skipped: Skipped | None) -> bool:
    from model import EXTENSIONS  # it imports Pillow and NumPy, which the help of the command does not need

    accepted = os.path.splitext(path)[1].lower() in EXTENSIONS | OTHER_EXTENSIONS
    if not accepted and skipped:
        skipped.add(path)
    return accepted


def _walk(folder: str, accept: Callable[[str], bool]) -> Iterator[str | BadPath]:
    """The accepted files in a folder and its subfolders. Hidden ones are skipped.

    Links to folders are followed, except to folders that contain this one. No folder is visited twice.
    """
    unreadable: list[BadPath] = []
    visited = {_identity(str(above)) for above in Path(folder).resolve().parents}

    def note(error: OSError) -> None:
        unreadable.append(BadPath(error.filename, describe_read_error(error)))

    for parent, subfolders, names in os.walk(folder, onerror=note, followlinks=True):
        yield from unreadable  # those between the previous folder and this one
        unreadable.clear()
        identity = _identity(parent)
        if identity in visited:
            subfolders.clear()
            continue
        visited.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not name.startswith(".") and accept(path) and not _is_special(path):
                yield path
    yield from unreadable


def _identity(folder: str) -> tuple[int, int]:
    """Device and inode: the same for each path of a folder."""
    try:
        status = os.stat(folder)
    except OSError:  # it was removed just now
        return -1, -1
    return status.st_dev, status.st_ino


def _is_special(path: str) -> bool:
    """Whether it is a socket, a pipe or a device. A broken link is none: reading it reports the error."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


class FileSizeError(Exception):
    """A file is empty or too large. The message is a sentence."""


def read_file(path: str, max_bytes: int) -> bytes:
    """The content of a file. At most `max_bytes` + 1 bytes are read, since a pipe or a device may be endless.

    Args:
        path: of the file; `STDIN` for standard input.
        max_bytes: the limit.

    Raises:
        OSError, ValueError: it cannot be read.
        FileSizeError: it is empty, or larger than the limit.
    """
    if path == STDIN:
        data = sys.stdin.buffer.read(max_bytes + 1)
    else:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, max_bytes) + 1)
            if len(data) > size:  # a pipe or a device, or the file has grown
                data += file.read(max_bytes + 1 - len(data))
    check_size(data, max_bytes)
    return data


def check_size(data: bytes, max_bytes: int) -> None:
    """Check the content of a file.

    Raises:
        FileSizeError: it is empty, or larger than the limit.
    """
    if not data:
        raise FileSizeError("it is empty")
    if len(data) > max_bytes:
        raise FileSizeError(f"it has more than {max_bytes:,} bytes")


def describe_read_error(error: Exception) -> str:
    """The reason why a file or folder cannot be read."""
    if isinstance(error, FileSizeError):
        return str(error)
    return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
