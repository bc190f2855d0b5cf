"""The part of each image, from a hash of its content."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from model.errors import DataError
from model.training.data.listing import ListedFile, Listing
from model.training.data.sets import PARTS, Part


@dataclass(frozen=True, slots=True)
class HashedFile:
    """A file and the SHA-256 of its content, in hexadecimal."""

    file: ListedFile
    sha256: str


@dataclass(frozen=True, slots=True)
class Split:
    """The files of each part, and what was found on the way.

    Attributes:
        parts: the files of each part, ordered by their hashes.
        repeated: pairs of files of one class with the same content. The first one is left out.
        leaked: pairs of files with the same content in two parts of the folder. The first one is left out.
        ambiguous: pairs of files with the same content in two classes of one part. Both are kept.
    """

    parts: dict[Part, list[HashedFile]]
    repeated: list[tuple[str, str]]
    leaked: list[tuple[str, str]]
    ambiguous: list[tuple[str, str]]


def split(listing: Listing, files: Sequence[HashedFile], *, holdout: float, test: float) -> Split:
    """Assign each file to a part.

    With a test share of 1, all images are for the test. Otherwise the parts that the folder does not have are chosen by
    the hash of the content. An image therefore stays in its part when other images are added or files are renamed. If
    no image of a class falls in a part, the next one by hash is moved to it, unless the images are added to another
    data set.

    Args:
        listing: of the folder.
        files: its files that can be read.
        holdout: share of the training images that is held out, 0..1; about that many of each class.
        test: share of all images that is for the test, if the folder has no such part; 1 for all images of any part.

    Raises:
        DataError: a class has too few images, or the shares leave none for training.
    """
    order = {part: number for number, part in enumerate(("test", "holdout", "train"))}
    first: dict[str, HashedFile] = {}  # content -> its file in the part that keeps it
    kept: list[HashedFile] = []
    seen: dict[tuple[str, int], HashedFile] = {}
    repeated, leaked, ambiguous = [], [], []
    if test == 1:
        files = [replace(hashed, file=replace(hashed.file, part="test")) for hashed in files]
    for hashed in sorted(files, key=lambda each: order[each.file.part]):
        file = hashed.file
        twin = first.setdefault(hashed.sha256, hashed)
        if twin.file.part != file.part:
            leaked.append((file.path, twin.file.path))
        elif same := seen.get((hashed.sha256, file.label)):
            repeated.append((file.path, same.file.path))
        else:
            seen[hashed.sha256, file.label] = hashed
            kept.append(hashed)
            if twin is not hashed:
                ambiguous.append((file.path, twin.file.path))
    chosen = {} if test == 1 else _chosen(listing, kept, holdout=holdout, test=test)
    parts: dict[Part, list[HashedFile]] = {part: [] for part in PARTS}
    for hashed in sorted(kept, key=lambda each: (each.sha256, each.file.label)):
        given = hashed.file.part
        parts[chosen[hashed.sha256] if given == "train" else given].append(hashed)
    return Split(parts, repeated, leaked, ambiguous)


def _chosen(listing: Listing, kept: Sequence[HashedFile], *, holdout: float, test: float) -> dict[str, Part]:
    """Content -> part of the files that are not in a part of their own."""
    shares: dict[Part, float] = {}
    if "test" not in listing.parts:
        shares["test"] = test
    if "holdout" not in listing.parts:
        shares["holdout"] = holdout
    shares = {part: share for part, share in shares.items() if share}
    if sum(shares.values()) >= 1:
        sizes = " and ".join(f"{part}_share={share:g}" for part, share in shares.items())
        raise DataError(f"{sizes} leave no images for training: set smaller shares")
    by_class: dict[int, list[str]] = defaultdict(list)
    for hashed in kept:
        if hashed.file.part == "train":
            by_class[hashed.file.label].append(hashed.sha256)
    chosen: dict[str, Part] = {}
    for label in range(len(listing.labels)):
        hashes = sorted(by_class[label])
        if len(hashes) <= len(shares) and not listing.added:
            raise DataError(
                f"the class {listing.labels[label]} has {len(hashes)} different images for training, and at least "
                f"{len(shares) + 1} are needed: add images, or remove the class"
            )
        for sha256 in hashes:
            chosen.setdefault(sha256, _by_hash(sha256, shares))
        for part in () if listing.added else (*shares, "train"):
            if not any(chosen[sha256] == part for sha256 in hashes):
                counts = [sum(chosen[other] == chosen[sha256] for other in hashes) for sha256 in hashes]
                chosen[hashes[counts.index(max(counts))]] = part
    return chosen


def _by_hash(sha256: str, shares: dict[Part, float]) -> Part:
    position = int(sha256[:16], 16) / 16**16
    for part, share in shares.items():
        if position < share:
            return part
        position -= share
    return "train"


def content_hash(parts: dict[Part, list[HashedFile]], labels: Sequence[str]) -> str:
    """SHA-256 over the class, the part and the content of all images, whatever their names."""
    digest = hashlib.sha256()
    for part in PARTS:
        for hashed in parts[part]:
            digest.update(f"{part}/{labels[hashed.file.label]}/{hashed.sha256}\n".encode())
    return digest.hexdigest()


def hash_file(root: Path, file: ListedFile) -> HashedFile:
    """Read a file and hash it.

    Raises:
        OSError: it cannot be read.
    """
    with (root / file.path).open("rb") as opened:
        return HashedFile(file, hashlib.file_digest(opened, "sha256").hexdigest())
