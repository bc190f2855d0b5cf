"""Adds the images of a folder to a data set."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model.card import AddedFolder
from model.errors import SaveError, cannot_write
from model.training.data.sets import PARTS, DataSet, LabeledImages, Part
from model.training.words import counted

# Images that are copied at once.
_BLOCK = 1024


def add_folder(data: DataSet, folder: DataSet, *, cache: Path, report: Callable[[str], None]) -> DataSet:
    """Add the parts of a folder of images to those of a data set.

    An image whose pixels the data set or the folder has already, in the same class or in another part, is left out. So
    no test image becomes a training image.

    Args:
        data: the data set.
        folder: the images, of the same size and with the same labels.
        cache: folder for the pixels, if those of `data` are memory-mapped.
        report: called with a line of text about the added images.

    Raises:
        SaveError: the cache cannot be written.
    """
    known: dict[bytes, tuple[Part, set[int]]] = {}
    for part in PARTS:
        for key, label in _keys(data, part):
            known.setdefault(key, (part, set()))[1].add(label)
    kept: dict[Part, LabeledImages] = {}
    chosen: dict[Part, list[int]] = {}
    for part in reversed(PARTS):  # the test images first, so that no copy of one is a training image
        chosen[part] = []
        for index, (key, label) in enumerate(_keys(folder, part)):
            place, labels = known.setdefault(key, (part, set()))
            if place == part and label not in labels:
                chosen[part].append(index)
                labels.add(label)
        kept[part] = getattr(folder, part)[torch.tensor(chosen[part], dtype=torch.int64)]
    count, left = sum(map(len, chosen.values())), sum(len(getattr(folder, part)) for part in PARTS)
    report(
        f"added to {data.name}: {count:,} of {counted(left, 'image')} of {folder.name}"
        + (f"; the others are in {data.name} already" if count < left else "")
    )
    files: Sequence[str] = ()
    if data.test_files or folder.test_files:
        of_folder = [folder.test_files[index] for index in chosen["test"]]
        files = [*(data.test_files or [""] * len(data.test)), *(f"{folder.name}/{file}" for file in of_folder)]
    about = AddedFolder(
        name=folder.name,
        sha256=folder.sha256 or "",
        train=len(chosen["train"]),
        holdout=len(chosen["holdout"]),
        test=len(chosen["test"]),
        repeated=left - count,
    )
    return replace(
        data,
        train=_joined([data.train, kept["train"]], cache),
        holdout=_joined([data.holdout, kept["holdout"]], cache),
        test=_joined([data.test, kept["test"]], cache),
        test_files=files,
        added=[*data.added, about],
    )


def _keys(data: DataSet, part: Part) -> Iterator[tuple[bytes, int]]:
    """A hash of the pixels of each image of a part, and its class."""
    images: LabeledImages = getattr(data, part)
    for pixels, label in zip(images.pixels.numpy(), images.labels.tolist(), strict=True):
        yield hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), label


def _joined(images: Sequence[LabeledImages], cache: Path) -> LabeledImages:
    """Images one after the other: in memory, or mapped from a temporary file if the first ones are memory-mapped."""
    labels = torch.cat([each.labels for each in images])
    if not images[0].mapped or not len(labels):
        return LabeledImages(torch.cat([each.pixels for each in images]), labels)
    try:
        with tempfile.TemporaryFile(dir=cache) as file:
            for each in images:
                for start in range(0, len(each), _BLOCK):
                    file.write(each.pixels[start : start + _BLOCK].numpy().tobytes())
            file.flush()
            # Private pages: torch accepts them without a warning, and nothing writes to them.
            pixels = np.memmap(file, np.uint8, "c", shape=(len(labels), *images[0].pixels.shape[1:]))
    except OSError as error:
        raise SaveError(cannot_write(f"to {cache}", error, "choose another --cache")) from error
    return LabeledImages(torch.from_numpy(pixels), labels, mapped=True)
