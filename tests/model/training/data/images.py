"""Folders of images for tests."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> Path:
    """Write an image of random pixels. Equal seeds and sizes give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_classes(folder: Path, classes: Iterable[str], count: int, *, first: int = 0) -> Path:
    """Write `count` different images for each class."""
    for number, name in enumerate(classes):
        for index in range(count):
            write_image(folder / name / f"{index:03}.png", first + 1000 * number + index)
    return folder
