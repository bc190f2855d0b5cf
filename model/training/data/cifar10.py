"""CIFAR-10 from its published files."""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from model.errors import DataError
from model.training.data.sets import LabeledImages

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


def load_cifar10_test(root: Path) -> LabeledImages:
    """The 10,000 CIFAR-10 test images, in the archive's order.

    Raises:
        DataError: the files are missing or damaged.
    """
    return _read(root / _FOLDER, _TEST_FILES)


def load_cifar10(root: Path, *, download: bool = False) -> tuple[LabeledImages, LabeledImages, dict[str, str]]:
    """The 50,000 training and the 10,000 test images, in the archive's order, and the MD5 of each file.

    Args:
        root: folder that contains cifar-10-batches-py/.
        download: download the archive through torchvision if it is missing.

    Raises:
        DataError: the files are missing or damaged.
    """
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
                f"no CIFAR-10 in {folder.parent}: unpack {_ARCHIVE} there, let tenfold train --download fetch it, or "
                f"train on images of your own with --data folder:PATH (missing: {folder.name}/{name})"
            ) from error
        # Unpickled only if its hash is that of the published file.
        if hashlib.md5(blob, usedforsecurity=False).hexdigest() != md5:
            raise DataError(f"{folder / name} is damaged (its MD5 is not {md5}): delete {folder} and download it again")
        batch = pickle.loads(blob, encoding="latin1")
        pixels.append(batch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.extend(batch["labels"])
    return LabeledImages(torch.from_numpy(np.concatenate(pixels)).contiguous(), torch.tensor(labels))
