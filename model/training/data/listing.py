"""The files of a data set: PATH/CLASS/*, PATH/train/CLASS/* with PATH/val or PATH/test, or a table of files."""

import csv
import os
import stat
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import DataError
from model.training.data.sets import Part

_PART_FOLDERS: dict[str, Part] = {
    "train": "train", "training": "train",
    "val": "holdout", "valid": "holdout", "validation": "holdout",
    "test": "test", "testing": "test",
}  # fmt: skip

_TABLES = (".csv", ".tsv")
# Names of the columns of a table, in any case.
_FILE = ("path", "file", "file_name", "filename", "filepath", "file_path", "image", "image_path")
_CLASS = ("label", "class", "class_name", "category", "target")
_PART = ("split", "part", "subset")


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a class.

    Attributes:
        path: relative to `Listing.base`, with slashes. A table can have absolute paths.
        label: number of its class.
        part: by its folder; "train" if the folder has no parts.
        size: bytes.
        modified: nanoseconds since 1970.
        unreadable: why it cannot be read, as far as that is known without opening it.
    """

    path: str
    label: int
    part: Part
    size: int
    modified: int
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder of images or of a table.

    Attributes:
        labels: the class names, sorted.
        files: ordered by part, class and path.
        parts: the parts that have folders of their own; empty for PATH/CLASS/*.
        unused: names in the folders of classes that are neither a class nor a part, or lines of a table.
        added: whether the images are added to another data set. A class may then have any number of images.
        base: folder that the paths are relative to.
        beside: what `unused` is beside, for people.
    """

    labels: tuple[str, ...]
    files: list[ListedFile]
    parts: tuple[Part, ...]
    unused: tuple[str, ...] = ()
    added: bool = False
    base: Path = Path()
    beside: str = "folders of classes"


def list_images(root: Path, *, added: bool = False) -> Listing:
    """List the files of each class, without opening them.

    A class is a folder, and every file in it and its subfolders counts. Names that begin with a dot are left out. Links
    are followed. If PATH has a folder of training images and one of held-out or test images, these are the parts of the
    data set. Their names are train or training; val, valid or validation; test or testing, in any case.

    A table is a file with the suffix .csv or .tsv and the names of its columns in the first line. It has a column of
    files, relative to its folder, a column of classes, and a column of parts, if it has one.

    Args:
        root: the folder or the table.
        added: whether the images are added to another data set. One class is then enough.

    Raises:
        DataError: the folder does not exist or cannot be read, has fewer than two classes or an empty one, its parts
            have different classes, or all its classes have names of parts.
    """
    if not root.exists():
        raise DataError(f"the folder {root} does not exist: give --data folder:PATH")
    if not root.is_dir() and root.suffix.lower() not in _TABLES:
        raise DataError(
            f"{root} is a file: give --data folder:PATH a folder of images, or a table of them (.csv, .tsv)"
        )
    unused: list[str] = []
    try:
        if not root.is_dir():
            return _list_table(root, added=added)
        folders = _parts(root, unused)
        found = {folder: _classes(folder, root, unused) for folder in folders or {root: "train"}}
        labels = _labels(found, least=1 if added else 2)
        files = [
            _listed(root, path.relative_to(root).as_posix(), label=number, part=folders.get(folder, "train"))
            for folder, classes in found.items()
            for number, label in enumerate(labels)
            for path in files_in(classes[label])
        ]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): change its permissions") from error
    beside = "folders of parts and classes" if folders else "folders of classes"
    listing = Listing(labels, files, tuple(folders.values()), tuple(unused), added, root, beside)
    _refuse_empty_classes(listing, found, folders)
    return listing


def _parts(root: Path, unused: list[str]) -> dict[Path, Part]:
    """Folder -> part of PATH/train, PATH/val and PATH/test; nothing if PATH has classes. Adds other names to `unused`.

    Raises:
        DataError: PATH has two folders for a part, or all its classes have names of parts.
    """
    entries = _entries(root)
    folders: dict[Part, Path] = {}
    double = None
    for path in (path for path in entries if path.is_dir() and path.name.casefold() in _PART_FOLDERS):
        part = _PART_FOLDERS[path.name.casefold()]
        double = double or ((folders[part], path) if part in folders else None)
        folders[part] = path
    if "train" in folders and len(folders) > 1:
        if double:
            raise DataError(f"{double[0]} and {double[1]} are both the same part: join them")
        unused += [_name(path) for path in entries if path not in folders.values()]
        order: tuple[Part, ...] = ("train", "holdout", "test")
        return {folders[part]: part for part in order if part in folders}
    classes = [path.name for path in entries if path.is_dir()]
    if len(classes) > 1 and all(name.casefold() in _PART_FOLDERS for name in classes):
        raise DataError(
            f"all folders in {root} have names of parts ({', '.join(classes)}), and none is train: rename the folder "
            "of the training images, or name the folder of one part"
        )
    return {}


def _entries(folder: Path) -> list[Path]:
    """What a folder of parts or classes contains, sorted.

    Raises:
        DataError: a link leads to nothing. A class would be missing.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in entries:
        if path.is_symlink() and not path.exists():
            raise DataError(f"the link {path} leads to nothing: correct or remove it")
    return entries


def _name(path: Path) -> str:
    return path.name + "/" * path.is_dir()


def _classes(folder: Path, root: Path, unused: list[str]) -> dict[str, Path]:
    """Name -> folder of each class. Adds the names of other files to `unused`."""
    classes: dict[str, Path] = {}
    for path in _entries(folder):
        if not path.is_dir():
            unused.append(path.relative_to(root).as_posix())
            continue
        name = _class_name(path.name, f"the class folder {str(path)!a}")
        if name in classes:
            raise DataError(f"{folder} has two folders with the name {name}: rename one")
        classes[name] = path
    return classes


def _class_name(text: str, place: str) -> str:
    """The name of a class. macOS decomposes accents."""
    name = unicodedata.normalize("NFC", text)
    if not name.isprintable():
        raise DataError(f"the name of {place} cannot be printed: rename it")
    return name


def _labels(found: dict[Path, dict[str, Path]], *, least: int) -> tuple[str, ...]:
    """The classes, which all parts must have."""
    for folder, classes in found.items():
        if len(classes) < least:
            has = f"only one class, {next(iter(classes))}" if classes else "no folders of classes"
            inside = [path for path in classes.values() if any(child.is_dir() for child in path.iterdir())]
            advice = f", or name --data folder:{inside[0]}" if inside else ""
            raise DataError(
                f"{folder} has {has}: put the images of each class in a folder with its name, "
                f"for at least {'one class' if least == 1 else 'two classes'}{advice}"
            )
    first, *others = found
    for other in others:
        differences = [
            f"only in {folder.name}: {', '.join(sorted(missing)[:5])}"
            for folder, missing in (
                (first, found[first].keys() - found[other].keys()),
                (other, found[other].keys() - found[first].keys()),
            )
            if missing
        ]
        if differences:
            raise DataError(
                f"{first} and {other} have different classes ({'; '.join(differences)}): give both the same folders"
            )
    return tuple(sorted(found[first]))


def files_in(folder: Path) -> Iterator[Path]:
    """The files in a folder and its subfolders, without names that begin with a dot.

    Links are followed. A folder that they lead to again is listed once.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        inside = {name: os.path.realpath(Path(parent, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, place in inside.items() if place not in seen]
        seen.update(inside.values())
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def _listed(base: Path, name: str, *, label: int, part: Part) -> ListedFile:
    path = base / name
    try:
        status = path.stat()
    except PermissionError:
        raise
    except (OSError, ValueError) as error:  # a ValueError of a zero byte in a table
        reason = str(error.strerror if isinstance(error, OSError) else error)
        if isinstance(error, OSError) and path.is_symlink():
            reason = "it is a link that leads to nothing"
        return ListedFile(name, label, part, 0, 0, reason)
    reason = "" if stat.S_ISREG(status.st_mode) else "it is not a regular file"  # opening a pipe could wait for ever
    return ListedFile(name, label, part, status.st_size, status.st_mtime_ns, reason)


def _refuse_empty_classes(
    listing: Listing, found: Mapping[Path, Mapping[str, Path]], folders: Mapping[Path, Part]
) -> None:
    filled = {(file.part, file.label) for file in listing.files}
    for folder, classes in found.items():
        for number, label in enumerate(listing.labels):
            if (folders.get(folder, "train"), number) not in filled:
                raise DataError(f"the class folder {classes[label]} is empty: add images, or remove the folder")


def _list_table(table: Path, *, added: bool) -> Listing:
    """List the files that a table names.

    Raises:
        DataError: it is not UTF-8 or lacks a column, has an unknown part, or too few classes.
        OSError: it cannot be read.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=header.count))
            names = reader.fieldnames or ()
            of_file, of_class = _column(names, _FILE, table), _column(names, _CLASS, table)
            of_part = _column(names, _PART)
            lines = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table} is not a table in UTF-8 ({error}): save it as CSV with the encoding UTF-8") from error
    rows: list[tuple[str, str, Part]] = []
    unused = []
    for number, row in lines:
        name, label = (row[of_file] or "").strip(), (row[of_class] or "").strip()
        if not name or not label:
            unused.append(f"line {number}")
            continue
        text = ((row[of_part] or "") if of_part else "").strip().casefold()
        part: Part | None = _PART_FOLDERS.get(text) if text else "train"
        if part is None:
            raise DataError(f"line {number} of {table} is of the part {text!a}: write train, val or test")
        rows.append((name, _class_name(label, f"the class in line {number} of {table}"), part))
    labels = tuple(sorted({label for _, label, _ in rows}))
    if len(labels) < (1 if added else 2):
        raise DataError(f"{table} has {len(labels)} classes with files: name at least {'one' if added else 'two'}")
    order: tuple[Part, ...] = ("train", "holdout", "test")
    parts = tuple(part for part in order if any(row[2] == part for row in rows))
    if len(parts) > 1:
        for part in parts:
            if missing := set(labels) - {label for _, label, own in rows if own == part}:
                raise DataError(f"{table} has no file of the class {min(missing)} in the part {part}: add one")
    if len(parts) > 1 and "train" not in parts:
        raise DataError(f"{table} has several parts, and none is train: correct the column {of_part}")
    base = table.parent
    files = [
        _listed(base, name, label=labels.index(label), part=part if len(parts) > 1 else "train")
        for name, label, part in sorted(rows, key=lambda row: (order.index(row[2]), row[1], row[0]))
    ]
    beside = "lines with a file and a class"
    return Listing(labels, files, parts if len(parts) > 1 else (), tuple(unused), added, base, beside)


def _column(names: Collection[str], known: Collection[str], table: Path | None = None) -> str:
    """The first column with a known name, or "" if there is none and no `table` needs it."""
    found = [name for name in names if name.strip().casefold().replace(" ", "_") in known]
    if not found and table:
        raise DataError(
            f"{table} has no column with one of the names {', '.join(known)} in its first line "
            f"({', '.join(names) or 'it is empty'}): name its columns"
        )
    return found[0] if found else ""
