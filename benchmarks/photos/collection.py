"""Photographs that are contained in PyPI and Debian packages: a manifest of them, and their download."""

import csv
import hashlib
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Literal

MANIFEST = Path(__file__).with_name("manifest.csv")
FOLDER = Path("data/photos")
OTHER = "other"

_COLUMNS = ["package", "path", "sha256", "label", "kind"]
# Names and versions do not begin with a dash, so that no client parses them as an option.
_PACKAGE = re.compile(r"pypi:\w[\w.-]*==\w[\w.!+]*|deb:\w[\w.+-]*=\w[\w.+:~-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_INSIDE = "!"
_TIMEOUT = 600


class ManifestError(Exception):
    """A row of the manifest is malformed."""


class PackageError(Exception):
    """A package cannot be downloaded or read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the manifest.

    Attributes:
        package: "pypi:NAME==VERSION" or "deb:NAME=VERSION".
        path: the path of the image in the archive; after "!", its path in a Qt resource file in the archive.
        sha256: SHA-256 of the image file.
        label: name of the class; "other" for an image of something else.
        kind: "photo" or "cutout" for the ten classes; the subject for other images.
    """

    package: str
    path: str
    sha256: str
    label: str
    kind: str


@dataclass(frozen=True, slots=True)
class Photo:
    """A downloaded image.

    Attributes:
        path: the file, named by its SHA-256.
        label: name of the class; None for an image of something else.
        kind: as in the manifest.
        package: as in the manifest.
    """

    path: Path
    label: str | None
    kind: str
    package: str

    @property
    def half(self) -> Literal["A", "B"]:
        """The half of the benchmark that it belongs to: A if the first digit of its hash is even.

        Decisions are based on half A. Half B is for reports.
        """
        return "B" if int(self.path.name[0], 16) % 2 else "A"


def read_manifest(path: Path = MANIFEST) -> list[Entry]:
    """The rows of the manifest in order.

    Raises:
        ManifestError: a row is malformed.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != _COLUMNS:
        raise ManifestError(f"{path} does not begin with the columns {', '.join(_COLUMNS)}")
    return [_entry(row, f"{path}, row {number}") for number, row in enumerate(rows[1:], start=2)]


def collect(
    folder: Path = FOLDER, manifest: Path = MANIFEST, *, download: Callable[[str, Path], Path] | None = None
) -> tuple[list[Photo], list[str]]:
    """Download the images that are not in the folder yet.

    Nothing in a package is executed. Of its files only the images are written, with names that do not come from it.

    Args:
        folder: folder of the images, created if missing.
        manifest: the images.
        download: writes the archive of a package into an empty folder and returns its path, or raises PackageError;
            pip and apt-get by default.

    Returns:
        The images that are available, in the order of the manifest, and a sentence for each package or image that is
        not.

    Raises:
        ManifestError: a row of the manifest is malformed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = read_manifest(manifest)
    skipped: list[str] = []
    missing = [entry for entry in entries if not _is_valid(_file_of(entry, folder), entry.sha256)]
    for package, group in groupby(sorted(missing, key=lambda entry: entry.package), key=lambda entry: entry.package):
        wanted = {entry.path: entry for entry in group}
        try:
            skipped += _extract(package, wanted, folder, download or _download)
        except PackageError as error:
            skipped.append(f"{package} is skipped with {len(wanted)} of the images: {error}")
    photos = [
        Photo(_file_of(entry, folder), None if entry.label == OTHER else entry.label, entry.kind, entry.package)
        for entry in entries
        if _file_of(entry, folder).is_file()
    ]
    return photos, skipped


def _entry(row: Sequence[str], where: str) -> Entry:
    if len(row) != len(_COLUMNS):
        raise ManifestError(f"{where}: {len(row)} columns, not {len(_COLUMNS)}")
    entry = Entry(*row)
    if not _PACKAGE.fullmatch(entry.package):
        raise ManifestError(f"{where}: {entry.package!r} is not a package of PyPI or Debian")
    if not _SHA256.fullmatch(entry.sha256):
        raise ManifestError(f"{where}: {entry.sha256!r} is not a SHA-256")
    path = PurePosixPath(entry.path)
    if path.is_absolute() or ".." in path.parts or path.suffix.lower() not in _SUFFIXES:
        raise ManifestError(f"{where}: {entry.path!r} is not a path of an image in an archive")
    return entry


def _file_of(entry: Entry, folder: Path) -> Path:
    return folder / (entry.sha256 + PurePosixPath(entry.path).suffix.lower())


def _is_valid(path: Path, sha256: str) -> bool:
    if path.is_file():
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return True
        path.unlink()
    return False


def _extract(
    package: str, wanted: Mapping[str, Entry], folder: Path, download: Callable[[str, Path], Path]
) -> list[str]:
    """Write the wanted images of a package into the folder.

    Returns:
        A sentence for each image that is missing or has another hash.

    Raises:
        PackageError: the package cannot be downloaded or read.
    """
    not_found, skipped = set(wanted), []
    with TemporaryDirectory() as scratch:
        archive = download(package, Path(scratch))
        try:
            for path, blob in _images_in(archive, set(wanted)):
                not_found.discard(path)
                if hashlib.sha256(blob).hexdigest() != wanted[path].sha256:
                    skipped.append(f"{path} of {package} is skipped: its hash differs from the manifest")
                else:
                    _write(_file_of(wanted[path], folder), blob)
        except (OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, ValueError) as error:
            raise PackageError(f"its archive cannot be read ({error})") from error
    return skipped + [f"{path} of {package} is skipped: it is not in the archive" for path in sorted(not_found)]


def _write(path: Path, blob: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(blob)
    part.replace(path)


def _download(package: str, folder: Path) -> Path:
    """Download the archive of a package with the registry's client into an empty folder.

    Raises:
        PackageError: the client is missing, or the package does not exist.
    """
    registry, _, requirement = package.partition(":")
    if registry == "pypi":
        # Wheels only, since pip runs the build backend of a source archive to determine its name.
        client = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command = [*client, "--ignore-requires-python", "--dest", str(folder), requirement]
    else:
        command = ["apt-get", "download", "--quiet", requirement]
    try:
        subprocess.run(  # noqa: S603 - the names were checked when the manifest was read
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except FileNotFoundError as error:
        raise PackageError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"the download took longer than {_TIMEOUT} seconds") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()]
        raise PackageError(lines[-1] if lines else f"{command[0]} exited with {error.returncode}") from error
    archives = [path for path in folder.iterdir() if path.suffix in {".whl", ".deb"}]
    if len(archives) != 1:
        raise PackageError(f"{len(archives)} archives were downloaded instead of one")
    return archives[0]


def _images_in(archive: Path, wanted: AbstractSet[str]) -> Iterator[tuple[str, bytes]]:
    """Path and content of the wanted images in an archive, read into memory."""
    files: dict[str, set[str]] = {}
    for path in wanted:
        outer, _, inner = path.partition(_INSIDE)
        files.setdefault(outer, set()).add(inner)
    for name, blob in _files(archive, files.keys()):
        if files[name] == {""}:
            yield name, blob
        else:
            for inner, image in _qt_resources(blob):
                if inner in files[name]:
                    yield name + _INSIDE + inner, image


def _files(archive: Path, wanted: AbstractSet[str]) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name in wanted:
                    yield name, wheel.read(name)
        return
    # dpkg-deb, which every system with apt-get has, reads every compression that Debian has used.
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacked,  # noqa: S603 - an archive in a temporary folder
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as data,
    ):
        for member in data:
            name = member.name.removeprefix("./")
            if name in wanted and (file := data.extractfile(member)) is not None:
                yield name, file.read()


def _qt_resources(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of the files in a Qt resource file (.rcc).

    Raises:
        ValueError: it is not a Qt resource file.
    """
    magic, version, tree, data, names = struct.unpack_from(">4s4I", blob)
    if magic != b"qres":
        raise ValueError("not a Qt resource file")
    size = 14 if version == 1 else 22  # since version 2, a node ends with a time

    def name(at: int) -> str:
        (length,) = struct.unpack_from(">H", blob, names + at)
        start = names + at + 6  # after the length and a hash
        return blob[start : start + 2 * length].decode("utf-16-be")

    def walk(first: int, count: int, parent: str) -> Iterator[tuple[str, bytes]]:
        for node in range(tree + first * size, tree + (first + count) * size, size):
            name_at, flags, a, b = struct.unpack_from(">IHII", blob, node)
            path = parent + name(name_at)
            if flags & 2:  # a folder: the number of children, and the first one
                yield from walk(b, a, path + "/")
            elif not flags & 4:  # not Zstandard, which Python 3.11 lacks; images are rarely compressed again
                (length,) = struct.unpack_from(">I", blob, data + b)
                content = blob[data + b + 4 : data + b + 4 + length]
                yield path, zlib.decompress(content[4:]) if flags & 1 else content

    _, _, count, first = struct.unpack_from(">IHII", blob, tree)  # the root has no name
    yield from walk(first, count, "")
