"""From a store to a folder of images by class, which `tenfold train --data folder:PATH` reads."""

import csv
import io
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from app.feedback.store import NONE, NONE_TEXT, Store, Stored, StoreError

CSV_FILE = "labels.csv"
_COLUMNS = ("request_id", "index", "time", "model", "version", "predicted", "confidence", "label", "file")
# Pillow's format -> extension, where the two differ.
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        rows: number of labelled predictions.
        images: how many of them have an image of one of the classes.
        others: how many of them have an image of none of the classes.
    """

    rows: int
    images: int
    others: int


def others_folder(folder: Path) -> Path:
    """The folder of the images of none of the classes. It is beside FOLDER, because each folder in it is a class."""
    folder = folder.absolute()  # "." has no name
    return folder.with_name(f"{folder.name}-none")


def export(store: Store, folder: Path) -> Exported:
    """Write the stored images of all labelled predictions as FOLDER/CLASS/*, and a CSV file of all of them.

    Images of none of the classes are written to `others_folder(folder)`, if there are any.

    Args:
        store: to read.
        folder: must not exist, or be empty, like the folder of the others.

    Raises:
        StoreError: the store cannot be read or has no labels, or the folder cannot be written. No partial folder
            remains.
    """
    others = others_folder(folder)
    for path in (folder, others):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StoreError(f"{path} exists and is not an empty folder: name another one")
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        (partial / others.name).mkdir(parents=True)
        (partial / folder.name).mkdir()
        exported = _write(store, partial / folder.name, partial / others.name)
        if not exported.rows:
            raise StoreError(f"{store.path} has no labels yet: send some with POST /feedback")
        if exported.others:
            (partial / others.name).replace(others)
        (partial / folder.name).replace(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror}): name another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return exported


def _write(store: Store, folder: Path, others_at: Path) -> Exported:
    rows = images = others = 0
    with (folder / CSV_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for row in store.labelled():
            rows += 1
            path = ""
            if row.image:
                name = f"{row.request_id}-{row.position}.{_extension(row.image)}"
                # Hidden files are left out of a data set, and a request ID may begin with a dot.
                name = f"_{name}" if name.startswith(".") else name
                if row.label == NONE:
                    others += 1
                    target, path = others_at, f"../{others_at.name}/{name}"
                else:
                    images += 1
                    label = _folder_name(row.label or "")
                    target, path = folder / label, f"{label}/{name}"
                target.mkdir(exist_ok=True)
                (target / name).write_bytes(row.image)
            writer.writerow(_cells(row, path))
    return Exported(rows, images, others)


def _cells(row: Stored, path: str) -> tuple[str | int | float | None, ...]:
    when = datetime.fromtimestamp(row.time, UTC).isoformat(timespec="milliseconds")
    label = NONE_TEXT if row.label == NONE else row.label
    model = (row.model, row.version, row.predicted, round(row.confidence, 6), label)
    return row.request_id, row.position, when, *model, path


def _folder_name(label: str) -> str:
    """The label as the name of a folder that a data set may have."""
    name = label.replace("/", "_").replace("\\", "_").replace("\0", "_")
    return f"_{name}" if name.startswith(".") or not name else name


def _extension(image: bytes) -> str:
    try:
        with Image.open(io.BytesIO(image)) as opened:
            name = opened.format or "image"
    except (UnidentifiedImageError, OSError, ValueError):
        name = "image"
    return _EXTENSIONS.get(name, name.lower())
