"""Five corruptions of images in five levels.

The definitions and levels are those of CIFAR-10-C: Hendrycks and Dietterich 2019, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations", arXiv:1903.12261.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SEED = 0

Pixels = NDArray[np.float64]
"""An image, float64[H, W, 3], 0..1."""


class Corruption(NamedTuple):
    """One kind of corruption.

    Attributes:
        apply: image, value of a level and source of noise -> corrupted image, not limited to 0..1.
        values: of the five levels.
    """

    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    values: Sequence[float]


def corrupt(pixels: NDArray[np.uint8], name: str, level: int) -> NDArray[np.uint8]:
    """Corrupt an image. Equal arguments give the same result.

    Args:
        pixels: uint8[H, W, 3].
        name: of `CORRUPTIONS`.
        level: 1 to 5.
    """
    kind = CORRUPTIONS[name]
    generator = np.random.default_rng([_SEED, level, int(pixels.sum())])
    found = kind.apply(pixels / 255, kind.values[level - 1], generator)
    corrupted: NDArray[np.uint8] = np.round(np.clip(found, 0, 1) * 255).astype(np.uint8)
    return corrupted


def gaussian_blur(image: Pixels, sigma: float, _: np.random.Generator) -> Pixels:
    """Convolve with a Gaussian of this standard deviation in pixels. The border is repeated."""
    radius = max(1, round(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padding = [(0, 0)] * 3
        padding[axis] = (radius, radius)
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(image, padding, "edge"), len(kernel), axis=axis)
        image = np.einsum("hwck,k->hwc", windows, kernel)
    return image


def gaussian_noise(image: Pixels, deviation: float, generator: np.random.Generator) -> Pixels:
    """Add normal noise of this standard deviation."""
    return image + generator.normal(0, deviation, image.shape)


def brightness(image: Pixels, amount: float, _: np.random.Generator) -> Pixels:
    """Add to the value of HSV. Hue and saturation stay the same."""
    value = image.max(axis=2, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    found: Pixels = np.where(value > 0, image * brighter / np.maximum(value, 1e-6), brighter)
    return found


def contrast(image: Pixels, factor: float, _: np.random.Generator) -> Pixels:
    """Scale the differences from the mean of each channel."""
    mean = image.mean(axis=(0, 1))
    found: Pixels = mean + (image - mean) * factor
    return found


def jpeg(image: Pixels, quality: float, _: np.random.Generator) -> Pixels:
    """Compress as JPEG of this quality."""
    file = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file)) / 255


CORRUPTIONS: Mapping[str, Corruption] = {
    "Gaussian blur": Corruption(gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "Gaussian noise": Corruption(gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "brightness": Corruption(brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": Corruption(contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "JPEG": Corruption(jpeg, (80, 65, 58, 50, 40)),
}
"""Name -> corruption."""
