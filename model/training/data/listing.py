"""The files of a folder of images: PATH/CLASS/*, or PATH/train/CLASS/* and PATH/test/CLASS/*."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.errors import DataError
from model.training.data.sets import Part

_PART_FOLDERS: dict[str, Part] = {"train": "train", "val": "holdout", "test": "test"}


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a class.

    Attributes:
        path: relative to the folder, with slashes.
        label: number of its class.
        part: by its folder; "train" if the folder has no parts.
        size: bytes.
        modified: nanoseconds since 1970.
    """

    path: str
    label: int
    part: Part
    size: int
    modified: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a folder of images.

    Attributes:
        labels: the class names, sorted.
        files: ordered by part, class and path.
        parts: the parts that have folders of their own; empty for PATH/CLASS/*.
        added: whether the images are added to another data set. A class may then have any number of images.
    """

    labels: tuple[str, ...]
    files: list[ListedFile]
    parts: tuple[Part, ...]
    added: bool = False


def list_images(root: Path, *, added: bool = False) -> Listing:
    """List the files of each class, without opening them.

    A class is a folder, and every file in it and its subfolders counts. Names that begin with a dot are left out. With
    PATH/train and PATH/test, these are the parts of the data set, and PATH/val, if there is one, is the held-out part.

    Args:
        root: the folder.
        added: whether the images are added to another data set. One class is then enough.

    Raises:
        DataError: the folder does not exist or cannot be read, has fewer than two classes or an empty one, or its parts
            have different classes.
    """
    if not root.is_dir():
        raise DataError(f"the folder {root} does not exist: give --data folder:PATH")
    has_parts = (root / "train").is_dir() and (root / "test").is_dir()
    folders = {root / name: part for name, part in _PART_FOLDERS.items() if (root / name).is_dir()} if has_parts else {}
    try:
        found = {folder: _classes(folder) for folder in folders or {root: "train"}}
        labels = _labels(found, least=1 if added else 2)
        files = [
            _listed(root, path, label=number, part=folders.get(folder, "train"))
            for folder, classes in found.items()
            for number, label in enumerate(labels)
            for path in _files(classes[label])
        ]
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): change its permissions") from error
    listing = Listing(labels, files, tuple(folders.values()), added)
    _refuse_empty_classes(listing, found)
    return listing


def _classes(folder: Path) -> dict[str, Path]:
    """Name -> folder of each class."""
    classes: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_dir():
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
    first, *others = found
    names = sorted(found[first])
    if len(names) < least:
        has = f"only one class, {names[0]}" if names else "no folders of classes"
        advice = f", or name --data folder:{first / names[0]}" if names == ["train"] else ""
        raise DataError(
            f"{first} has {has}: put the images of each class in a folder with its name, "
            f"for at least {'one class' if least == 1 else 'two classes'}{advice}"
        )
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
    return tuple(names)


def _files(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent) / name for name in sorted(names) if not name.startswith("."))


def _listed(root: Path, path: Path, *, label: int, part: Part) -> ListedFile:
    status = path.stat()
    return ListedFile(path.relative_to(root).as_posix(), label, part, status.st_size, status.st_mtime_ns)


def _refuse_empty_classes(listing: Listing, found: dict[Path, dict[str, Path]]) -> None:
    filled = {(file.part, file.label) for file in listing.files}
    for folder, classes in found.items():
        part = _PART_FOLDERS[folder.name] if listing.parts else "train"
        for number, label in enumerate(listing.labels):
            if (part, number) not in filled:
                raise DataError(f"the class folder {classes[label]} is empty: add images, or remove the folder")
