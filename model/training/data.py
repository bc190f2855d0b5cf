"""Data sets as whole tensors: CIFAR-10, and synthetic images that need no files."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.card import Training
from model.errors import DataError

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_ARCHIVE = "cifar-10-python.tar.gz"
_FOLDER = "cifar-10-batches-py"
# The published MD5s, as in torchvision.datasets.CIFAR10, which takes seconds to import.
_TRAIN_FILES: Mapping[str, str] = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
_TEST_FILES: Mapping[str, str] = {"test_batch": "40351d587109b95175f43aff81a1287e"}

_HOLDOUT_SEED = 20090408
_SYNTHETIC_SEED = 1


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """Labelled images of one size.

    Attributes:
        pixels: uint8[N, H, W, 3].
        labels: int64[N].
    """

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "LabeledImages":
        return LabeledImages(self.pixels[index], self.labels[index])

    def to(self, device: torch.device) -> "LabeledImages":
        return LabeledImages(self.pixels.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class DataSet:
    """The three parts of a data set, and what identifies it.

    Attributes:
        train: images to train on.
        holdout: images held out of the training set, for decisions; may be empty.
        test: used once, at the end.
        labels: the class names, in the order of the label numbers.
        md5: MD5 of each file; empty for synthetic images.
    """

    train: LabeledImages
    holdout: LabeledImages
    test: LabeledImages
    labels: tuple[str, ...]
    md5: Mapping[str, str]


def load(kind: str, root: Path, *, holdout: int, limit: int | None = None, download: bool = False) -> DataSet:
    """Read a data set into memory.

    Args:
        kind: "cifar10" or "synthetic".
        root: folder that contains cifar-10-batches-py/; not used for synthetic images.
        holdout: number of images to hold out of the training set, the same number of each class.
        limit: use only the first so many images of each part, for a trial.
        download: download CIFAR-10 through torchvision if it is missing.

    Raises:
        DataError: the files are missing or damaged.
    """
    if kind == "synthetic":
        train, test, md5 = _synthetic(400, 1), _synthetic(100, 2), dict[str, str]()
    else:
        train, test, md5 = _cifar10(root, download=download)
    kept, held = _split(train.labels, holdout)
    train, held_out = train[kept], train[held]
    if limit is not None:
        train, held_out, test = train[:limit], held_out[:limit], test[:limit]
    return DataSet(train, held_out, test, CIFAR10_LABELS, md5)


def load_again(training: Training, root: Path, *, limit: int | None = None) -> DataSet:
    """Read the data set that a bundle was trained on, with the same images held out.

    Raises:
        DataError: the files are missing or damaged, or the bundle's recipe does not name them.
    """
    try:
        kind, holdout = str(training.recipe["data"]), int(training.recipe["holdout"])
    except KeyError as error:
        raise DataError(f"the card's recipe lacks {error}: the held-out images are not known") from error
    return load(kind, root, holdout=holdout, limit=limit)


def load_cifar10_test(root: Path) -> LabeledImages:
    """The 10,000 CIFAR-10 test images, in the archive's order.

    Raises:
        DataError: the files are missing or damaged.
    """
    return _read(root / _FOLDER, _TEST_FILES)


def _cifar10(root: Path, *, download: bool) -> tuple[LabeledImages, LabeledImages, dict[str, str]]:
    folder = root / _FOLDER
    if download and not folder.is_dir():
        from torchvision.datasets import CIFAR10

        try:
            CIFAR10(root, download=True)
        except Exception as error:
            raise DataError(
                f"CIFAR-10 could not be downloaded ({error}): download {_ARCHIVE} by hand and unpack it in {root}"
            ) from error
    return _read(folder, _TRAIN_FILES), _read(folder, _TEST_FILES), {**_TRAIN_FILES, **_TEST_FILES}


def _read(folder: Path, files: Mapping[str, str]) -> LabeledImages:
    pixels, labels = [], []
    for name, md5 in files.items():
        try:
            blob = (folder / name).read_bytes()
        except OSError as error:
            raise DataError(
                f"no CIFAR-10 in {folder.parent}: add --download to download it, "
                f"or unpack {_ARCHIVE} there (missing: {folder.name}/{name})"
            ) from error
        # Unpickled only if its hash is that of the published file.
        if hashlib.md5(blob, usedforsecurity=False).hexdigest() != md5:
            raise DataError(f"{folder / name} is damaged (its MD5 is not {md5}): delete {folder} and download it again")
        batch = pickle.loads(blob, encoding="latin1")
        pixels.append(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.extend(batch["labels"])
    return LabeledImages(torch.from_numpy(np.concatenate(pixels)).contiguous(), torch.tensor(labels))


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


def _synthetic(count: int, stream: int) -> LabeledImages:
    """Noisy images of a grating, whose hue and orientation depend on the class. They are learned in seconds."""
    generator = torch.Generator().manual_seed(_SYNTHETIC_SEED + stream)
    labels = torch.arange(count) % len(CIFAR10_LABELS)
    angle = labels * (torch.pi / len(CIFAR10_LABELS))
    axis = torch.linspace(-1, 1, 32)
    along = (
        axis[None, :, None] * torch.sin(angle)[:, None, None] + axis[None, None, :] * torch.cos(angle)[:, None, None]
    )
    phase = torch.rand(count, 1, 1, generator=generator) * 2 * torch.pi
    grating = torch.sin(10 * along + phase)
    hue = torch.stack([torch.cos(angle * 2 + shift) for shift in (0.0, 2.1, 4.2)], dim=-1)
    clean = 128 + 60 * grating[..., None] * hue[:, None, None, :] + 30 * hue[:, None, None, :]
    noise = 20 * torch.randn(clean.shape, generator=generator)
    return LabeledImages((clean + noise).clamp(0, 255).to(torch.uint8), labels)
