"""The files of a folder of images: PATH/CLASS/*, or PATH/train/CLASS/* with PATH/val or PATH/test."""

import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.errors import DataError
from model.training.data.sets import Part

_PART_FOLDERS: dict[str, Part] = {
    "train": "train", "training": "train",
    "val": "holdout", "valid": "holdout", "validation": "holdout",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a class.

    Attributes:
        path: relative to the folder, with slashes.
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
    """The files of a folder of images.

    Attributes:
        labels: the class names, sorted.
        files: ordered by part, class and path.
        parts: the parts that have folders of their own; empty for PATH/CLASS/*.
        unused: names in the folders of classes that are neither a class nor a part.
        added: whether the images are added to another data set. A class may then have any number of images.
    """

    labels: tuple[str, ...]
    files: list[ListedFile]
    parts: tuple[Part, ...]
    unused: tuple[str, ...] = ()
    added: bool = False


def list_images(root: Path, *, added: bool = False) -> Listing:
    """List the files of each class, without opening them.

    A class is a folder, and every file in it and its subfolders counts. Names that begin with a dot are left out. Links
    are followed. If PATH has a folder of training images and one of held-out or test images, these are the parts of the
    data set. Their names are train or training; val, valid or validation; test or testing, in any case.

    Args:
        root: the folder.
        added: whether the images are added to another data set. One class is then enough.

    Raises:
        DataError: the folder does not exist or cannot be read, has fewer than two classes or an empty one, its parts
            have different classes, or all its classes have names of parts.
    """
    if not root.exists():
        raise DataError(f"the folder {root} does not exist: give --data folder:PATH")
    if not root.is_dir():
        raise DataError(f"{root} is a file: give --data folder:PATH a folder of images")
    unused: list[str] = []
    try:
        folders = _parts(root, unused)
        found = {folder: _classes(folder, root, unused) for folder in folders or {root: "train"}}
        labels = _labels(found, least=1 if added else 2)
        files = [
            _listed(root, path, label=number, part=folders.get(folder, "train"))
            for folder, classes in found.items()
            for number, label in enumerate(labels)
            for path in files_in(classes[label])
        ]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): change its permissions") from error
    listing = Listing(labels, files, tuple(folders.values()), tuple(unused), added)
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
        # macOS decomposes accents.
        name = unicodedata.normalize("NFC", path.name)
        if not name.isprintable():
            raise DataError(f"the name of the class folder {str(path)!a} cannot be printed: rename it")
        if name in classes:
            raise DataError(f"{folder} has two folders with the name {name}: rename one")
        classes[name] = path
    return classes


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


def _listed(root: Path, path: Path, *, label: int, part: Part) -> ListedFile:
    name = path.relative_to(root).as_posix()
    try:
        status = path.stat()
    except PermissionError:
        raise
    except OSError as error:
        reason = "it is a link that leads to nothing" if path.is_symlink() else str(error.strerror)
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
