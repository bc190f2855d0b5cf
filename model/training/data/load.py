"""From the option --data to a data set."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.card import InputSpec, ModelCard
from model.errors import DataError
from model.training.data.added import add_folder
from model.training.data.cache import Progress
from model.training.data.cifar10 import CIFAR10_LABELS, load_cifar10
from model.training.data.folder import load_folder
from model.training.data.listing import list_images
from model.training.data.sets import DataSet, LabeledImages
from model.training.data.synthetic import synthetic
from model.training.recipes import FIELD_DEFAULTS, Recipe
from model.training.words import printable

CACHE = Path("runs/cache")
"""Where decoded images of folders are by default."""

TestPart = Literal["auto", "test", "all"]
"""Which images of a folder a bundle is tested on, see `load_test`."""

_HOLDOUT_SEED = 20090408
_FOLDER = "folder:"


Sources = Path | str | Sequence[Path | str]
"""A folder that contains cifar-10-batches-py/, or "folder:PATH"; or several, of which all but the first are
"folder:PATH" and are added to the first (`model.training.data.added`)."""


def folder_of(data: Sources) -> Path | None:
    """PATH of "folder:PATH", which is a folder of images, or None. Of several sources it is that of the first one.

    Raises:
        DataError: PATH is empty, or begins with ~ and the name of nobody.
    """
    text = str(split_sources(data)[0])
    if not text.startswith(_FOLDER):
        return None
    if text == _FOLDER:
        raise DataError("--data folder: lacks the path: write --data folder:PATH")
    try:
        return Path(text.removeprefix(_FOLDER)).expanduser()
    except RuntimeError as error:
        raise DataError(f"the home folder in --data {text} does not exist: correct the path") from error


def split_sources(data: Sources) -> tuple[Path | str, list[Path | str]]:
    """The first source, and those that are added to it."""
    first, *others = [data] if isinstance(data, Path | str) else data
    return first, others


def load_for(
    recipe: Recipe,
    data: Sources,
    *,
    limit: int | None = None,
    download: bool = False,
    cache: Path = CACHE,
    report: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> DataSet:
    """Read the data set that a recipe is to be trained on.

    Args:
        recipe: it selects the size of the images of a folder, and the held-out and test images.
        data: where the images are.
        limit: use only the first so many images of each part of each source, for a trial.
        download: download CIFAR-10 through torchvision if it is missing.
        cache: where decoded images of a folder are kept.
        report: called with lines of text about a folder of images.
        progress: called for each file of a folder that is hashed or decoded.

    Raises:
        DataError: the files are missing or damaged, or the folder cannot be used.
        SaveError: the cache cannot be written.
    """
    first, others = split_sources(data)
    folder = folder_of(first)
    if folder is None and recipe.data == "folder":
        raise DataError(f"the recipe is for a folder of images, and {first} is not one: give --data folder:PATH")
    read = partial(load_folder, holdout=recipe.holdout_share, test=recipe.test_share, cache=cache, progress=progress)
    if folder is None:
        found = load(recipe.data, Path(first), holdout=recipe.holdout, limit=limit, download=download)
    else:
        found = read(folder, recipe.input_spec(), report=report).limited(limit)
    return _with_folders(found, others, recipe.input_spec(), read, limit=limit, cache=cache, report=report)


def _with_folders(
    data: DataSet,
    others: Sequence[Path | str],
    spec: InputSpec,
    read: Callable[..., DataSet],
    *,
    limit: int | None,
    cache: Path,
    report: Callable[[str], None],
) -> DataSet:
    """Add folders of images to a data set.

    Args:
        data: the data set.
        others: "folder:PATH", any number of them.
        spec: test transform of the recipe or the card.
        read: `load_folder` with some of its arguments.
        limit: as for `load_for`, and so are the others.

    Raises:
        DataError: one of `others` is not a folder of images, or has classes that `data` lacks.
        SaveError: the cache cannot be written.
    """
    side = data.train.pixels.shape[1]  # CIFAR-10 keeps its size, whatever the recipe resizes it to
    if side != spec.resize:
        spec = spec.model_copy(update={"resize": side, "crop": min(side, spec.crop)})
    unsplit = {} if len(data.holdout) else {"holdout": 0.0}
    for other in others:
        folder = folder_of(other)
        if folder is None:
            raise DataError(f"only folders can be added to a data set, and {other} is not one: name it first")
        images = read(folder, spec, labels=data.labels, added=True, report=report, **unsplit)
        data = add_folder(data, images.limited(limit), cache=cache, report=report)
    return data


def load_again(
    card: ModelCard,
    data: Sources,
    *,
    limit: int | None = None,
    cache: Path = CACHE,
    report: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> DataSet:
    """Read the data set that a bundle was trained on, with the same images held out.

    Args:
        card: of the bundle.
        data: as for `load_for`. A folder may contain other images of the same classes.
        limit: likewise, and so are the others.

    Raises:
        DataError: the files are missing or damaged, the card does not name them, or a folder has other classes.
        SaveError: the cache cannot be written.
    """
    recipe = card.training.recipe
    first, others = split_sources(data)
    folder = folder_of(first)
    try:
        kind, holdout = str(recipe["data"]), int(recipe["holdout"])
    except KeyError as error:
        raise DataError(f"the card's recipe lacks {error}: the held-out images are not known") from error
    read = partial(
        load_folder,
        holdout=_share(recipe, "holdout_share"),
        test=_share(recipe, "test_share"),
        cache=cache,
        progress=progress,
    )
    trained = card.training.data
    if folder is None:
        if kind == "folder":
            raise DataError(f"{card.name} was trained on a folder of images: give --data folder:PATH")
        known = load(kind, Path(first), holdout=holdout, limit=limit)
    else:
        known = read(folder, card.input, labels=card.labels, report=report)
        if trained and trained.sha256 and trained.sha256 != known.sha256:
            report(f"{folder} has changed since {card.name} was trained, or is another folder")
        known = known.limited(limit)
    known = _with_folders(known, others, card.input, read, limit=limit, cache=cache, report=report)
    expected = trained.added if trained else []
    if {added.sha256 for added in expected} != {added.sha256 for added in known.added}:
        names = ", ".join(added.name for added in expected) or "none"
        report(f"{card.name} was trained with other added folders, or with other images in them: {names}")
    return known


def load_test(
    card: ModelCard,
    data: Path | str,
    *,
    part: TestPart = "auto",
    limit: int | None = None,
    cache: Path = CACHE,
    report: Callable[[str], None] = print,
    progress: Progress | None = None,
) -> LabeledImages:
    """Read the images of a folder that a bundle is to be tested on, and report which these are.

    Args:
        card: of the bundle.
        data: "folder:PATH".
        part: "test" for the images in PATH/test, or those that training leaves for the test. "all" for all images.
            "auto" for all images, unless PATH has a folder of test images, or is or was the training data.
        limit: use only the first so many images.
        cache: where decoded images are kept.
        report: called with lines of text.
        progress: called for each file that is hashed or decoded.

    Raises:
        DataError: the folder cannot be used, or has classes that the bundle does not know.
        SaveError: the cache cannot be written.
    """
    folder = folder_of(data)
    if folder is None:
        raise DataError(f"{data} is no folder of images: give --data folder:PATH")

    if part == "auto" and card.training.data and card.training.data.added:
        raise DataError(
            "the bundle was trained on several sources: name all of them in the same order with --data, or give --part "
            f"all if none of the images of {folder} was trained on"
        )
    trained = card.training.data if card.training.data and card.training.data.sha256 else None
    same_name = trained is not None and trained.name == printable(folder.resolve().name)

    def in_parts() -> DataSet:
        return load_again(card, data, cache=cache, report=report, progress=progress)

    if part == "test" or (part == "auto" and (same_name or "test" in list_images(folder).parts)):
        test, which = in_parts().test, "test images"
    else:
        every = load_folder(
            folder, card.input, holdout=0, test=1, cache=cache, labels=card.labels, report=report, progress=progress
        )
        test, which = every.test, "images"
        # The training data may have another name now. It has as many images of each class then.
        counts = trained and [sum(each) for each in zip(trained.train, trained.holdout, trained.test, strict=True)]
        if part == "auto" and trained and counts == every.counts("test"):
            again = in_parts()
            if again.sha256 == trained.sha256:
                test, which = again.test, "test images"
    test = test[:limit]
    report(f"testing on {len(test):,} {which} of {folder}")
    return test


def _share(recipe: Mapping[str, Any], name: str) -> float:
    return float(recipe.get(name, FIELD_DEFAULTS[name]))


def load(kind: str, root: Path, *, holdout: int, limit: int | None = None, download: bool = False) -> DataSet:
    """Read CIFAR-10 or synthetic images into memory.

    Args:
        kind: "cifar10" or "synthetic".
        root: folder that contains cifar-10-batches-py/; not used for synthetic images.
        holdout: number of images to hold out of the training set, the same number of each class; 0 for none.
        limit: use only the first so many images of each part, for a trial.
        download: download CIFAR-10 through torchvision if it is missing.

    Raises:
        DataError: the files are missing or damaged, or `holdout` leaves a class without images.
    """
    if kind == "synthetic":
        train, test, md5, name = synthetic(400, 1), synthetic(100, 2), dict[str, str](), "synthetic images"
    else:
        train, test, md5 = load_cifar10(root, download=download)
        name = "CIFAR-10"
    classes = len(CIFAR10_LABELS)
    if 0 < holdout < classes or holdout > len(train) - classes:
        raise DataError(
            f"holdout={holdout} is not possible with {classes} classes of {len(train) // classes:,} images: give 0, or "
            f"{classes} to {len(train) - classes:,}"
        )
    kept, held = _split(train.labels, holdout)
    return DataSet(train[kept], train[held], test, CIFAR10_LABELS, name, md5).limited(limit)


def _split(labels: Tensor, holdout: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and the held-out images: the same number of each class, the same in every run."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_HOLDOUT_SEED))
    per_class = holdout // (int(labels.max()) + 1)
    shuffled = labels[order]
    rank = torch.zeros_like(shuffled)
    for label in range(int(labels.max()) + 1):
        chosen = shuffled == label
        rank[chosen] = torch.arange(int(chosen.sum()))
    held = rank < per_class
    return order[~held].sort().values, order[held].sort().values
