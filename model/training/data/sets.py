"""The types of a data set. `cifar10`, `folder` and `synthetic` make them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from model.card import AddedFolder, TrainingData

Part = Literal["train", "holdout", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """Labelled images of one size.

    Attributes:
        pixels: uint8[N, H, W, 3], in memory or memory-mapped from a file.
        labels: int64[N].
        mapped: whether `pixels` is memory-mapped. Such pixels are read-only, and only the parts that are used are read.
    """

    pixels: Tensor
    labels: Tensor
    mapped: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> "LabeledImages":
        """A selection. A slice of memory-mapped images is memory-mapped, other selections are in memory."""
        return LabeledImages(self.pixels[index], self.labels[index], self.mapped and isinstance(index, slice))

    def to(self, device: torch.device) -> "LabeledImages":
        """The labels on the device, and the pixels unless they are memory-mapped."""
        pixels = self.pixels if self.mapped else self.pixels.to(device)
        return LabeledImages(pixels, self.labels.to(device), self.mapped)


@dataclass(frozen=True, slots=True)
class DataSet:
    """The three parts of a data set, and what identifies it.

    Attributes:
        train: images to train on.
        holdout: images held out of the training set, for decisions; may be empty.
        test: used once, at the end.
        labels: the class names, in the order of the label numbers.
        name: of the data set, for people.
        md5: MD5 of each file of CIFAR-10, else empty.
        sha256: of the contents of all images of a folder and their parts and classes, else None.
        test_files: path of each test image in its folder, or "" if it has no file of its own; empty if none has.
        added: folders whose images were added (`model.training.data.added`).
    """

    train: LabeledImages
    holdout: LabeledImages
    test: LabeledImages
    labels: tuple[str, ...]
    name: str
    md5: Mapping[str, str] = field(default_factory=dict)
    sha256: str | None = None
    test_files: Sequence[str] = ()
    added: Sequence[AddedFolder] = ()

    def limited(self, count: int | None) -> "DataSet":
        """The first `count` images of each part; all for None."""
        first = slice(count)
        return replace(
            self,
            train=self.train[first],
            holdout=self.holdout[first],
            test=self.test[first],
            test_files=self.test_files[first],
        )

    def counts(self, part: Part) -> list[int]:
        """The number of images of each class in a part."""
        images: LabeledImages = getattr(self, part)
        counts: list[int] = torch.bincount(images.labels.cpu(), minlength=len(self.labels)).tolist()
        return counts

    def about(self) -> TrainingData:
        """The data set, for a card."""
        return TrainingData(
            name=self.name,
            sha256=self.sha256,
            train=self.counts("train"),
            holdout=self.counts("holdout"),
            test=self.counts("test"),
            added=list(self.added),
        )
