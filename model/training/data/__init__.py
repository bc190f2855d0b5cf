"""Data sets: CIFAR-10, a folder of images, and synthetic images that need no files."""

from model.training.data.cifar10 import CIFAR10_LABELS, load_cifar10_test
from model.training.data.load import (
    CACHE,
    Sources,
    TestPart,
    folder_of,
    load,
    load_again,
    load_for,
    load_test,
    split_sources,
)
from model.training.data.sets import DataSet, LabeledImages, Part

__all__ = [
    "CACHE",
    "CIFAR10_LABELS",
    "DataSet",
    "LabeledImages",
    "Part",
    "Sources",
    "TestPart",
    "folder_of",
    "load",
    "load_again",
    "load_cifar10_test",
    "load_for",
    "load_test",
    "split_sources",
]
