"""Command-line arguments -> paths of the files to classify.

Paths are generated as needed. Only the names in one folder, or the matches of one pattern, are in memory at a time.
"""

import fnmatch
import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

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
"""Extensions of the accepted formats, in lower case. Other files in a folder are skipped."""

STDIN = "-"

_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class BadPath:
    """A path or pattern that yields no files, and the reason."""

    path: str
    reason: str


def find_files(arguments: Sequence[str], listed: Iterable[str] = ()) -> Iterator[str | BadPath]:
    """The files that the arguments name, in the order of the arguments.

    Args:
        arguments: each is a file; a folder, for the images in it and its subfolders except hidden ones; a pattern,
            for shells that do not expand patterns; or `STDIN`, for the files and folders in `listed`.
        listed: paths that are read from standard input.

    Yields:
        The path of a file, or a BadPath in place of the files that an argument should have named. Files of a folder
        are sorted by name and precede those of its subfolders.
    """
    for argument in arguments:
        if argument == STDIN:
            for path in listed:
                yield from _files_at(path)
        elif not os.path.lexists(argument) and glob.has_magic(argument):
            yield from _or_bad_path(_expand_pattern(argument), argument, "nothing matches this pattern")
        else:
            yield from _files_at(argument)


def read_path_list(stream: BinaryIO, *, end: bytes = b"\n") -> Iterator[str]:
    """The paths in a stream, each as soon as its end is read. Empty ones are skipped.

    Args:
        stream: file paths in the file system's encoding.
        end: a byte that ends each path.
    """
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
        *complete, rest = (rest + chunk).split(end)
        yield from complete
    yield rest


def _files_at(path: str) -> Iterator[str | BadPath]:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: the path contains a NUL
        yield BadPath(path, describe_read_error(error))
        return
    if stat.S_ISDIR(mode):
        yield from _or_bad_path(_walk(path, _has_image_extension), path, "no images are in this folder")
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


def _expand_pattern(pattern: str) -> Iterator[str | BadPath]:
    """The files that match a pattern.

    `**` does not go through glob.iglob(recursive=True): that follows symbolic links, in circles too, and hides errors.
    """
    parts = pattern.split("/")
    if "**" not in parts:
        for path in sorted(glob.iglob(pattern)):
            yield from _files_at(path)
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


def _has_image_extension(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in EXTENSIONS


def _walk(folder: str, accept: Callable[[str], bool]) -> Iterator[str | BadPath]:
    """The accepted files in a folder and its subfolders. Hidden ones and links to folders are skipped."""
    unreadable: list[BadPath] = []

    def note(error: OSError) -> None:
        unreadable.append(BadPath(error.filename, describe_read_error(error)))

    for parent, subfolders, names in os.walk(folder, onerror=note):
        yield from unreadable  # those between the previous folder and this one
        unreadable.clear()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(parent, name)
            if not name.startswith(".") and accept(path) and not _is_special(path):
                yield path
    yield from unreadable


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

    Raises:
        OSError, ValueError: it cannot be read.
        FileSizeError: it is empty, or larger than the limit.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, max_bytes) + 1)
        if len(data) > size:  # a pipe or a device, or the file has grown
            data += file.read(max_bytes + 1 - len(data))
    if not data:
        raise FileSizeError("it is empty")
    if len(data) > max_bytes:
        raise FileSizeError(f"it has more than {max_bytes:,} bytes")
    return data


def describe_read_error(error: Exception) -> str:
    """The reason why a file or folder cannot be read."""
    if isinstance(error, FileSizeError):
        return str(error)
    return f"it cannot be read ({getattr(error, 'strerror', None) or error})"
