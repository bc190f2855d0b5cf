"""Decoded images in a memory-mapped file, so that a data set can be larger than the memory.

A cache has one folder for each folder of images and image size:

    pixels      uint8[N, S, S, 3]: the training images, the held-out images, the test images
    index.json  their classes, and a fingerprint of the files that were decoded

An entry is used while its fingerprint is that of the files: their paths, sizes, times of modification, and the split.
Otherwise the images are decoded again and replace it. An entry is written to a folder with the suffix .partial, which
is renamed when it is complete. An interrupted command removes it. The next command removes what a killed one has left.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from model.card import REVISION, InputSpec
from model.errors import DataError, ImageError, SaveError, cannot_write
from model.image import square_for_crops
from model.training.data.listing import ListedFile, Listing
from model.training.data.sets import PARTS, LabeledImages, Part
from model.training.data.split import HashedFile, content_hash, hash_file, split
from model.training.words import counted

Progress = Callable[[int, int], None]
"""Called with the number of files done and the total."""

_FORMAT = 1
_MAX_PIXELS = 50_000_000
_MAX_BYTES = 1 << 28
_SKIPPED_SHARE = 0.01
_AT_ONCE = 128
_EXAMPLES = 3

Pair = tuple[str, str]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Index:
    """What index.json contains.

    Attributes:
        fingerprint: of the files that were decoded.
        sha256: of the contents, parts and classes of all images.
        labels: the class names.
        numbers: the class number of each image of a part.
        test_files: path of each test image.
        skipped: path and reason for each file that cannot be read.
        repeated, leaked, ambiguous: as in `split.Split`.
    """

    fingerprint: str
    sha256: str
    labels: list[str]
    numbers: dict[Part, list[int]]
    test_files: list[str]
    skipped: list[Pair]
    repeated: list[Pair]
    leaked: list[Pair]
    ambiguous: list[Pair]


def cached_images(
    root: Path,
    listing: Listing,
    spec: InputSpec,
    cache: Path,
    *,
    holdout: float,
    test: float,
    report: Callable[[str], None],
    progress: Progress | None = None,
) -> tuple[dict[Part, LabeledImages], Index]:
    """Map the images of a folder from the cache, after they have been decoded if that is necessary.

    Args:
        root: the folder.
        listing: its files.
        spec: the images are squares of spec.resize pixels (`model.image.square_for_crops`).
        cache: folder of all entries; it is made if it does not exist.
        holdout: as in `split.split`.
        test: likewise.
        report: called with a line of text before images are decoded.
        progress: called for each file that is hashed or decoded.

    Raises:
        DataError: more than 1 % of the files cannot be read, or a class has too few images.
        SaveError: the cache cannot be written. No partial entry remains.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "-", root.resolve().name).strip("-") or "images"
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
    entry = cache / f"{name}-{place}-{spec.resize}-{spec.crop}{'-all' if test == 1 else ''}"
    fingerprint = _fingerprint(listing, spec, holdout=holdout, test=test)
    try:
        with _locked(entry):
            if (index := _read_index(entry, spec)) is None or index.fingerprint != fingerprint:
                report(f"decoding {counted(len(listing.files), 'file')} of {root} once, to {entry}")
                with _partial(entry) as partial:
                    index = _decode(
                        root, listing, spec, partial, fingerprint, holdout=holdout, test=test, progress=progress
                    )
            return _mapped(entry, index, spec), index
    except OSError as error:
        raise SaveError(cannot_write(f"the cache {entry}", error, "choose another --cache")) from error


def _fingerprint(listing: Listing, spec: InputSpec, *, holdout: float, test: float) -> str:
    digest = hashlib.sha256(
        repr((_FORMAT, REVISION, spec.interpolation, holdout, test, listing.labels, listing.added)).encode()
    )
    for file in listing.files:
        digest.update(repr(file).encode())
    return digest.hexdigest()


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Wait until no other process decodes the same images."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_name(f"{entry.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _partial(entry: Path) -> Iterator[Path]:
    """A new folder that replaces the entry at the end, or is removed after an exception."""
    partial = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        yield partial
        shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decode(
    root: Path,
    listing: Listing,
    spec: InputSpec,
    folder: Path,
    fingerprint: str,
    *,
    holdout: float,
    test: float,
    progress: Progress | None,
) -> Index:
    """Write the files of an entry."""
    skipped: list[Pair] = []
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, 2 * len(listing.files))

    def skip(path: str, reason: str) -> None:
        skipped.append((path, reason))
        if len(skipped) > len(listing.files) * _SKIPPED_SHARE:
            shown = "; ".join(f"{path}: {reason}" for path, reason in skipped[:_EXAMPLES])
            raise DataError(
                f"more than {_SKIPPED_SHARE:.0%} of the {counted(len(listing.files), 'file')} in {root} are not images "
                f"that can be read ({shown}): remove them"
            )

    with ThreadPoolExecutor(os.cpu_count()) as pool, (folder / "pixels").open("wb") as out:
        hashed: list[HashedFile] = []
        for file, result in _mapped_over(pool, lambda file: _hashed(listing.base, file), listing.files):
            advance()
            if isinstance(result, str):
                skip(file.path, result)
            else:
                hashed.append(result)
        parted = split(listing, hashed, holdout=holdout, test=test)
        count = sum(map(len, parted.parts.values()))
        _refuse_full_disk(folder, count * spec.resize**2 * 3)
        done = 2 * len(listing.files) - count
        kept: dict[Part, list[HashedFile]] = {part: [] for part in PARTS}
        for part in PARTS:
            files = parted.parts[part]
            for each, pixels in _mapped_over(pool, lambda each: _square(listing.base, each.file, spec), files):
                advance()
                if isinstance(pixels, str):
                    skip(each.file.path, pixels)
                else:
                    out.write(pixels.tobytes())
                    kept[part].append(each)
    if not listing.added:
        _refuse_lost_classes(listing, parted.parts, kept)
    index = Index(
        fingerprint=fingerprint,
        sha256=content_hash(kept, listing.labels),
        labels=list(listing.labels),
        numbers={part: [each.file.label for each in kept[part]] for part in PARTS},
        test_files=[each.file.path for each in kept["test"]],
        skipped=skipped,
        repeated=parted.repeated,
        leaked=parted.leaked,
        ambiguous=parted.ambiguous,
    )
    (folder / "index.json").write_text(json.dumps(asdict(index)), encoding="utf-8")
    return index


def _mapped_over(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Sequence[T]) -> Iterator[tuple[T, R]]:
    """Each item with its result, in order. Only `_AT_ONCE` results are in memory at the same time."""
    for start in range(0, len(items), _AT_ONCE):
        part = items[start : start + _AT_ONCE]
        yield from zip(part, pool.map(function, part), strict=True)


def _hashed(base: Path, file: ListedFile) -> HashedFile | str:
    """The file with its hash, or why it cannot be read."""
    if file.unreadable:
        return file.unreadable
    if file.size > _MAX_BYTES:
        return f"it is larger than {_MAX_BYTES >> 20} MiB"
    try:
        return hash_file(base, file)
    except OSError as error:
        return str(error.strerror)


def _square(base: Path, file: ListedFile, spec: InputSpec) -> NDArray[np.uint8] | str:
    """The decoded image, or why it cannot be decoded."""
    try:
        return square_for_crops((base / file.path).read_bytes(), spec, max_pixels=_MAX_PIXELS)
    except ImageError as error:
        return str(error).partition(":")[0]
    except OSError as error:
        return str(error.strerror)


def _refuse_full_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SaveError(
            f"the images take {needed / 1e9:.1f} GB in {folder.parent}, where {free / 1e9:.1f} GB are free: free disk "
            "space or choose another --cache"
        )


def _refuse_lost_classes(
    listing: Listing, before: dict[Part, list[HashedFile]], after: dict[Part, list[HashedFile]]
) -> None:
    """Refuse a part that has lost all its images of a class."""
    for part in PARTS:
        lost = {each.file.label for each in before[part]} - {each.file.label for each in after[part]}
        if lost:
            raise DataError(
                f"no image of the class {listing.labels[min(lost)]} for the part {part} can be read: add images"
            )


def _read_index(entry: Path, spec: InputSpec) -> Index | None:
    """The index of a complete entry, or None."""
    try:
        index = Index(**json.loads((entry / "index.json").read_text(encoding="utf-8")))
        count = sum(map(len, index.numbers.values()))
        complete = (entry / "pixels").stat().st_size == count * spec.resize**2 * 3
    except (OSError, ValueError, TypeError):
        return None
    return index if complete else None


def _mapped(entry: Path, index: Index, spec: InputSpec) -> dict[Part, LabeledImages]:
    """The parts of an entry."""
    count = sum(map(len, index.numbers.values()))
    pixels = np.memmap(entry / "pixels", np.uint8, "r", shape=(count, spec.resize, spec.resize, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the memory is read-only
        whole = torch.from_numpy(pixels)
    parts: dict[Part, LabeledImages] = {}
    start = 0
    for part in PARTS:
        numbers = torch.tensor(index.numbers[part], dtype=torch.int64)
        parts[part] = LabeledImages(whole[start : start + len(numbers)], numbers, mapped=True)
        start += len(numbers)
    return parts
