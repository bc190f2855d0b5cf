"""A folder of images as a data set."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from model.card import InputSpec
from model.errors import DataError
from model.training.data.cache import Index, Progress, cached_images
from model.training.data.listing import Listing, list_images
from model.training.data.sets import PARTS, DataSet, LabeledImages
from model.training.words import counted, printable

_ROWS = 20
_EXAMPLES = 5


def load_folder(
    root: Path,
    spec: InputSpec,
    *,
    holdout: float,
    test: float,
    cache: Path,
    labels: Sequence[str] | None = None,
    added: bool = False,
    report: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> DataSet:
    """Map the images of a folder or of a table of files (`model.training.data.listing`).

    The images are decoded once, into the cache (`model.training.data.cache`).

    Args:
        root: the folder or the table.
        spec: test transform of the recipe or the card.
        holdout: share of the training images that is held out, unless PATH/val exists.
        test: share of all images that is for the test, unless PATH/test exists; 1 for all images, whatever their part.
        cache: folder of the decoded images.
        labels: the class names in the order of the label numbers; None sorts them. If all images are for the test,
            some of these classes may be missing.
        added: whether the images are added to a data set with these `labels`. Classes may then be missing.
        report: called with lines of text about the images of each class and the files that are left out.
        progress: called for each file that is hashed or decoded.

    Raises:
        DataError: the folder has another layout, too few images or too many unreadable files, or its classes are not
            those of `labels`.
        SaveError: the cache cannot be written.
    """

    def say(line: str) -> None:
        report(printable(line))

    listing = list_images(root, added=added)
    known = set(listing.labels if labels is None else labels)
    if added and (unknown := sorted(set(listing.labels) - known)):
        raise DataError(
            f"{root} has names that are no classes of the data set that it is added to "
            f"({', '.join(unknown[:_EXAMPLES])}): rename or remove them"
        )
    all_needed = not added and test < 1
    if not known.issuperset(listing.labels) or (all_needed and len(known) > len(listing.labels)):
        raise DataError(f"the classes of {root} are not those of the model ({_differences(known, listing.labels)})")
    parts, index = cached_images(root, listing, spec, cache, holdout=holdout, test=test, report=say, progress=progress)
    if labels is not None:
        order = torch.tensor([labels.index(label) for label in listing.labels])
        parts = {
            part: LabeledImages(images.pixels, order[images.labels], images.mapped) for part, images in parts.items()
        }
    data = DataSet(
        parts["train"],
        parts["holdout"],
        parts["test"],
        labels=tuple(labels or listing.labels),
        name=printable(root.resolve().name),
        sha256=index.sha256,
        test_files=[printable(path) for path in index.test_files],
    )
    for line in (*_counts(data), *_unused(listing), *_left_out(index)):
        say(line)
    return data


def _differences(expected: Iterable[str], found: Iterable[str]) -> str:
    only = {"missing": set(expected) - set(found), "unknown": set(found) - set(expected)}
    return "; ".join(f"{name}: {', '.join(sorted(labels)[:_EXAMPLES])}" for name, labels in only.items() if labels)


def _counts(data: DataSet) -> list[str]:
    """A table of the number of images by class and part: of all classes, or of the largest and smallest ones."""
    by_part = [data.counts(part) for part in PARTS]
    rows = sorted(zip(data.labels, *by_part, strict=True), key=lambda row: -sum(row[1:]))
    title = f"{len(rows)} classes"
    if len(rows) > _ROWS:
        rows = rows[: _ROWS // 2] + rows[-_ROWS // 2 :]
        title += f", the {_ROWS // 2} largest and smallest"
    table = [
        (title, "training", "held-out", "test"),
        *[(label, *(f"{count:,}" for count in counts)) for label, *counts in rows],
        ("all", *(f"{sum(counts):,}" for counts in by_part)),
    ]
    width = max(len(row[0]) for row in table)
    return [f"{label:{width}}  {first:>9}  {second:>9}  {third:>9}" for label, first, second, third in table]


def _unused(listing: Listing) -> list[str]:
    """A line about what lies beside the folders of parts or classes, or none."""
    names = listing.unused
    if not names:
        return []
    examples = ", ".join(names[:_EXAMPLES])
    return [
        f"{len(names):,} not used beside the {listing.beside}: {examples}{', ...' if len(names) > _EXAMPLES else ''}"
    ]


def _left_out(index: Index) -> list[str]:
    """A line about each kind of file that is left out or doubtful."""
    lines = [f"skipped {path}: {reason}" for path, reason in index.skipped]
    for pairs, what in (
        (index.leaked, "left out of the training or held-out images, because another part has the same content"),
        (index.repeated, "left out, because the class has the same content"),
        (index.ambiguous, "kept, although another class has the same content"),
    ):
        if pairs:
            examples = ", ".join(f"{one} and {other}" for one, other in pairs[:_EXAMPLES])
            lines.append(f"{counted(len(pairs), 'file')} {what}: {examples}{', ...' if len(pairs) > _EXAMPLES else ''}")
    return lines
