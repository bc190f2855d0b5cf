"""Photographs that ship inside PyPI and Debian packages: the manifest that names them, and fetching them."""

import csv
import hashlib
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

MANIFEST = Path(__file__).with_name("manifest.csv")
FOLDER = Path("data/photos")
OTHER = "other"

_COLUMNS = ["package", "path", "sha256", "label", "kind"]
# Neither a name nor a version begins with a dash, so that no client takes one for an option.
_PACKAGE = re.compile(r"pypi:\w[\w.-]*==\w[\w.!+]*|deb:\w[\w.+-]*=\w[\w.+:~-]*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_INSIDE = "!"
_TIMEOUT = 600


class ManifestError(Exception):
    """A row of the manifest that is not well-formed."""


class PackageError(Exception):
    """A package that cannot be had or read."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the manifest.

    Attributes:
        package: "pypi:NAME==VERSION" or "deb:NAME=VERSION".
        path: the picture's path in the archive; after "!", its path in a Qt resource file that is in the archive.
        sha256: of the picture's file.
        label: the class name; "other" for a picture of something else.
        kind: "photo" or "cutout" for the ten classes; what is in the picture for the others.
    """

    package: str
    path: str
    sha256: str
    label: str
    kind: str


@dataclass(frozen=True, slots=True)
class Photo:
    """A picture that was fetched.

    Attributes:
        path: the file, named after its SHA-256.
        label: the class name; None for a picture of something else.
        kind: as in the manifest.
        package: as in the manifest.
    """

    path: Path
    label: str | None
    kind: str
    package: str


def read_manifest(path: Path = MANIFEST) -> list[Entry]:
    """The rows of the manifest, in its order.

    Raises:
        ManifestError: a row is not well-formed.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    if not rows or rows[0] != _COLUMNS:
        raise ManifestError(f"{path} does not begin with the columns {', '.join(_COLUMNS)}")
    return [_entry(row, f"{path}, row {number}") for number, row in enumerate(rows[1:], start=2)]


def collect(folder: Path = FOLDER, manifest: Path = MANIFEST) -> tuple[list[Photo], list[str]]:
    """Fetch the pictures that are not in the folder yet, and tell which there are.

    Nothing of a package is executed, and none of its files is written but the pictures, under names of ours.

    Args:
        folder: where the pictures are kept; created if missing.
        manifest: what to fetch.

    Returns:
        What could be had, in the manifest's order; a sentence for each package or picture that could not.

    Raises:
        ManifestError: a row of the manifest is not well-formed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = read_manifest(manifest)
    left_out: list[str] = []
    missing = [entry for entry in entries if not _is_kept(_kept(entry, folder), entry.sha256)]
    for package, group in groupby(sorted(missing, key=lambda entry: entry.package), key=lambda entry: entry.package):
        wanted = {entry.path: entry for entry in group}
        try:
            left_out += _fetch(package, wanted, folder)
        except PackageError as error:
            left_out.append(f"{package} is left out with {len(wanted)} of the pictures: {error}")
    photos = [
        Photo(_kept(entry, folder), None if entry.label == OTHER else entry.label, entry.kind, entry.package)
        for entry in entries
        if _kept(entry, folder).is_file()
    ]
    return photos, left_out


def _entry(row: Sequence[str], where: str) -> Entry:
    if len(row) != len(_COLUMNS):
        raise ManifestError(f"{where}: {len(row)} columns, not {len(_COLUMNS)}")
    entry = Entry(*row)
    if not _PACKAGE.fullmatch(entry.package):
        raise ManifestError(f"{where}: {entry.package!r} is no package of PyPI or Debian")
    if not _SHA256.fullmatch(entry.sha256):
        raise ManifestError(f"{where}: {entry.sha256!r} is no SHA-256")
    path = PurePosixPath(entry.path)
    if path.is_absolute() or ".." in path.parts or path.suffix.lower() not in _SUFFIXES:
        raise ManifestError(f"{where}: {entry.path!r} is no path of a picture inside an archive")
    return entry


def _kept(entry: Entry, folder: Path) -> Path:
    return folder / (entry.sha256 + PurePosixPath(entry.path).suffix.lower())


def _is_kept(path: Path, sha256: str) -> bool:
    if path.is_file():
        if hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
            return True
        path.unlink()
    return False


def _fetch(package: str, wanted: Mapping[str, Entry], folder: Path) -> list[str]:
    """Put the wanted pictures of a package into the folder; a sentence for each that is not there or not the same.

    Raises:
        PackageError: the package cannot be had or read.
    """
    not_found, left_out = set(wanted), []
    with TemporaryDirectory() as scratch:
        archive = _download(package, Path(scratch))
        try:
            for path, blob in _pictures(archive, set(wanted)):
                not_found.discard(path)
                if hashlib.sha256(blob).hexdigest() != wanted[path].sha256:
                    left_out.append(f"{path} of {package} is left out: it is not the picture of the manifest")
                else:
                    _write(_kept(wanted[path], folder), blob)
        except (OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, ValueError) as error:
            raise PackageError(f"its archive cannot be read ({error})") from error
    return left_out + [f"{path} of {package} is left out: it is not in the archive" for path in sorted(not_found)]


def _write(path: Path, blob: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(blob)
    part.replace(path)


def _download(package: str, folder: Path) -> Path:
    """The archive of a package, fetched into an empty folder.

    Raises:
        PackageError: the client is missing or has no such package.
    """
    registry, _, requirement = package.partition(":")
    if registry == "pypi":
        # Wheels only: pip would run the build of a source archive to learn its name.
        client = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command = [*client, "--ignore-requires-python", "--dest", str(folder), requirement]
    else:
        command = ["apt-get", "download", "--quiet", requirement]
    try:
        subprocess.run(  # noqa: S603 - the names were checked when the manifest was read
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=_TIMEOUT
        )
    except FileNotFoundError as error:
        raise PackageError(f"there is no {command[0]} here") from error
    except subprocess.TimeoutExpired as error:
        raise PackageError(f"it took longer than {_TIMEOUT} seconds") from error
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()]
        raise PackageError(lines[-1] if lines else f"{command[0]} ended with {error.returncode}") from error
    archives = [path for path in folder.iterdir() if path.suffix in {".whl", ".deb"}]
    if len(archives) != 1:
        raise PackageError(f"{len(archives)} archives came, not one")
    return archives[0]


def _pictures(archive: Path, wanted: AbstractSet[str]) -> Iterator[tuple[str, bytes]]:
    """Path and contents of the wanted pictures that an archive holds, read in memory."""
    files: dict[str, set[str]] = {}
    for path in wanted:
        outer, _, inner = path.partition(_INSIDE)
        files.setdefault(outer, set()).add(inner)
    for name, blob in _files(archive, files.keys()):
        if files[name] == {""}:
            yield name, blob
        else:
            for inner, picture in _qt_resources(blob):
                if inner in files[name]:
                    yield name + _INSIDE + inner, picture


def _files(archive: Path, wanted: AbstractSet[str]) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name in wanted:
                    yield name, wheel.read(name)
        return
    # dpkg-deb knows every compression that Debian has used; where apt-get is, it is.
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacked,  # noqa: S603 - an archive in a folder of ours
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as data,
    ):
        for member in data:
            name = member.name.removeprefix("./")
            if name in wanted and (file := data.extractfile(member)) is not None:
                yield name, file.read()


def _qt_resources(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and contents of the files in a Qt resource file (.rcc).

    Raises:
        ValueError: it is no such file.
    """
    magic, version, tree, data, names = struct.unpack_from(">4s4I", blob)
    if magic != b"qres":
        raise ValueError("no Qt resource file")
    size = 14 if version == 1 else 22  # from the second version on, a node ends with a time

    def name(at: int) -> str:
        (length,) = struct.unpack_from(">H", blob, names + at)
        start = names + at + 6  # behind the length and a hash
        return blob[start : start + 2 * length].decode("utf-16-be")

    def walk(first: int, count: int, parent: str) -> Iterator[tuple[str, bytes]]:
        for node in range(tree + first * size, tree + (first + count) * size, size):
            name_at, flags, a, b = struct.unpack_from(">IHII", blob, node)
            path = parent + name(name_at)
            if flags & 2:  # a folder: how many children, and the first one
                yield from walk(b, a, path + "/")
            elif not flags & 4:  # no Zstandard, which Python has not got; pictures are not compressed again anyway
                (length,) = struct.unpack_from(">I", blob, data + b)
                contents = blob[data + b + 4 : data + b + 4 + length]
                yield path, zlib.decompress(contents[4:]) if flags & 1 else contents

    _, _, count, first = struct.unpack_from(">IHII", blob, tree)  # the root has no name
    yield from walk(first, count, "")
