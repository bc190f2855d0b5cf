"""Images of none of the classes for training (outlier exposure): from a folder, and generated.

Source: Hendrycks, Mazeika, Dietterich, "Deep Anomaly Detection with Outlier Exposure", ICLR 2019 (arXiv:1812.04606).
"""

import copy
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from model.card import InputSpec, OutlierImages
from model.decode import decode
from model.errors import DataError, ImageError, RecipeError
from model.image import test_transform
from model.nets.base import Network
from model.training.data.listing import files_in
from model.training.recipes import Recipe
from model.training.words import printable

_MAX_PIXELS = 50_000_000
_SEED = 20181211
_WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not")


@dataclass(frozen=True, slots=True)
class Outliers:
    """Images of none of the classes.

    Attributes:
        pixels: uint8[N, S, S, 3].
        folders: number of the folder of each image, from 0 in the order of their paths, int64[N]; -1 for generated
            images.
        about: their number, origin and hash, for the card.
    """

    pixels: Tensor
    folders: Tensor
    about: OutlierImages

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device) -> "Outliers":
        """The same with its tensors on the device."""
        return Outliers(self.pixels.to(device), self.folders.to(device), self.about)


def load_outliers(root: Path, *, side: int, without: Collection[str] = (), generated_share: float = 0.0) -> Outliers:
    """Read every image in a folder and its subfolders, and add generated ones.

    Args:
        root: folder of images in any layout.
        side: of the images in memory, pixels: the shorter side is resized to it and the central square is kept.
        without: names of folders inside `root`, at any depth, that are not used.
        generated_share: fraction 0..1 of the result that is generated.

    Returns:
        The images in the order of their paths, then the generated ones. Files that are not images are counted.

    Raises:
        DataError: the folder does not exist or cannot be read, has no readable image, or has no folder with a name in
            `without`.
    """
    if not root.is_dir():
        raise DataError(f"the folder {root} does not exist: give --outliers a folder of images")
    try:
        paths = sorted(files_in(root))
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read ({error.strerror}): change its permissions") from error
    inside = {path: set(path.relative_to(root).parts[:-1]) for path in paths}
    if unknown := set(without) - set[str]().union(*inside.values()):
        raise DataError(f"{root} contains no folder {', '.join(sorted(unknown))}: correct --outliers-without")
    spec = InputSpec(resize=side, crop=side, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    images, origins, unreadable = [], [], 0
    for path in paths:
        if inside[path].isdisjoint(without):
            if not path.is_file():  # a pipe would be waited for
                unreadable += 1
                continue
            try:
                decoded = decode(path.read_bytes(), side=4 * side, max_pixels=_MAX_PIXELS)
            except (ImageError, OSError):
                unreadable += 1
            else:
                images.append(test_transform(decoded.image, spec))
                origins.append(path.parent)
    if not images:
        raise DataError(f"{root} contains no readable image: give --outliers a folder of images")
    read = torch.from_numpy(np.stack(images))
    generated = generate_outliers(round(len(read) * generated_share / (1 - generated_share)), side)
    pixels = torch.cat([read, generated])
    numbers = {folder: number for number, folder in enumerate(sorted(set(origins)))}
    folders = torch.tensor([numbers[folder] for folder in origins] + [-1] * len(generated))
    about = OutlierImages(
        images=len(read),
        generated=len(generated),
        without=sorted(map(printable, without)),
        unreadable=unreadable,
        sha256=hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
    )
    return Outliers(pixels, folders, about)


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    """Cross-entropy between the uniform distribution and the softmax of each row.

    Equation 2 of Hendrycks et al. 2019 with the loss for classification. Its minimum is ln C.

    Args:
        logits: float[N, C].

    Returns:
        float[N], nats.
    """
    return torch.logsumexp(logits, dim=1) - logits.mean(dim=1)


class FolderClassifier(nn.Module):
    """A network with a second classifier, of the folders of the outliers, on its pooled last feature map. It is for
    training only.

    Several tasks on shared features: Caruana, "Multitask Learning", Machine Learning 28, 1997.

    Args:
        net: the network.
        width: D of its last feature map, float[N, D, h, w].
        folders: number of folders.
    """

    def __init__(self, net: Network, width: int, folders: int) -> None:
        super().__init__()
        self.net = net
        self.classifier = nn.Linear(width, folders)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images, float[N, 3, H, W], to the logits of the classes and then of the folders, float[N, C+K]."""
        features = self.net.forward_features(x)
        folders = self.classifier(features.mean(dim=(2, 3)))
        return torch.cat([self.net.forward_logits(features), folders], dim=1)


def with_folder_classifier(net: Network, outliers: Outliers, recipe: Recipe) -> FolderClassifier | None:
    """A second classifier for the network, on the CPU, if the recipe has one.

    Raises:
        RecipeError: the outliers are all in one folder.
    """
    if not recipe.outlier_folder_weight:
        return None
    folders = int(outliers.folders.max()) + 1
    if folders < 2:
        raise RecipeError(
            "outlier_folder_weight needs outliers in two or more folders, one for each class of theirs: set it to 0"
        )
    evaluated = copy.deepcopy(net).eval()
    with torch.inference_mode():
        images = torch.zeros(2, 3, recipe.crop, recipe.crop)
        features = evaluated.forward_features(images)
    return FolderClassifier(net, features.shape[1], folders)


def generate_outliers(count: int, side: int) -> Tensor:
    """Generate images without an object: one colour, gradient, noise, text and window in turn.

    Equal arguments give equal images.

    Returns:
        uint8[count, side, side, 3].
    """
    rng = np.random.default_rng(_SEED)
    images = [_KINDS[number % len(_KINDS)](rng, side) for number in range(count)]
    return torch.from_numpy(np.stack(images)) if images else torch.empty(0, side, side, 3, dtype=torch.uint8)


def _flat(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    return np.broadcast_to(_colour(rng), (side, side, 3)).copy()


def _gradient(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """A linear or radial gradient between two colours."""
    rows, columns = np.mgrid[0:side, 0:side] / max(1, side - 1)
    if rng.random() < 0.7:
        angle = rng.uniform(0, 2 * np.pi)
        along = np.cos(angle) * columns + np.sin(angle) * rows
    else:
        along = np.hypot(columns - rng.random(), rows - rng.random())
    along = (along - along.min()) / max(float(np.ptp(along)), 1e-9)
    mixed: NDArray[np.float64] = _colour(rng) * (1 - along[..., None]) + _colour(rng) * along[..., None]
    return mixed.round().astype(np.uint8)


def _noise(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """Normal noise around one colour, grey or coloured, in squares of 1, 2 or 4 pixels."""
    grain = int(rng.choice([1, 1, 2, 4]))
    cells = -(-side // grain)
    channels = 3 if rng.random() < 0.5 else 1
    values = _colour(rng) + rng.uniform(5, 120) * rng.standard_normal((cells, cells, channels))
    enlarged = values.repeat(grain, axis=0).repeat(grain, axis=1)[:side, :side]
    return np.broadcast_to(enlarged, (side, side, 3)).clip(0, 255).astype(np.uint8)


def _text(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """A page of text with small or large letters, reduced to `side`."""
    paper, ink = (rng.integers(200, 256, 3), rng.integers(0, 90, 3))[:: int(rng.choice([1, -1]))]
    page = Image.new("RGB", (256, 256), tuple(paper.tolist()))
    draw = ImageDraw.Draw(page)
    size = float(rng.choice([10, 14, 20, 32, 64, 120]))
    font = ImageFont.load_default(size)
    left, spacing = int(rng.integers(-10, 40)), size * rng.uniform(1.1, 1.8)
    for line in range(int(256 / spacing) + 1):
        if rng.random() < 0.88:  # an empty line ends a paragraph
            words = " ".join(rng.choice(_WORDS, int(rng.integers(1, 14))))
            draw.text((left, line * spacing), words.capitalize(), fill=tuple(ink.tolist()), font=font)
    return np.array(page.resize((side, side), Image.Resampling.BILINEAR))


def _window(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """A screenshot of a window: a title bar, a menu and panels with lines of text, reduced to `side`."""
    width, height = ((256, 256), (340, 256), (256, 340))[int(rng.integers(3))]
    shades = np.sort(rng.integers(0, 256, 2))[:: int(rng.choice([1, -1]))]
    paper, ink = (tuple((shade + rng.integers(-20, 21, 3)).clip(0, 255).tolist()) for shade in shades)
    screen = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(screen)
    size = int(rng.choice([5, 7, 10]))
    font = ImageFont.load_default(size)
    bar, menu = int(rng.integers(0, 30)), int(rng.integers(0, 90))
    draw.rectangle((0, bar, menu, height), fill=tuple(_colour(rng).tolist()))
    draw.rectangle((0, 0, width, bar), fill=tuple(_colour(rng).tolist()))
    for _ in range(int(rng.integers(1, 8))):
        left, top = int(rng.integers(menu, width)), int(rng.integers(bar, height))
        right, bottom = left + int(rng.integers(20, 160)), top + int(rng.integers(10, 120))
        fill = tuple(_colour(rng).tolist()) if rng.random() < 0.4 else paper
        draw.rounded_rectangle((left, top, right, bottom), int(rng.integers(0, 8)), fill=fill, outline=ink)
        for line in range(top + 3, bottom - 6, round(1.5 * size)):
            draw.text((left + 4, line), " ".join(rng.choice(_WORDS, int(rng.integers(1, 8)))), fill=ink, font=font)
    return np.array(screen.resize((side, side), Image.Resampling.BILINEAR))


def _colour(rng: np.random.Generator) -> NDArray[np.uint8]:
    """White or black with a probability of 1/5, else a random colour."""
    if rng.random() < 0.2:
        return np.full(3, rng.choice([0, 255]), dtype=np.uint8)
    return rng.integers(0, 256, 3, dtype=np.uint8)


_KINDS: tuple[Callable[[np.random.Generator, int], NDArray[np.uint8]], ...] = (
    _flat,
    _gradient,
    _noise,
    _text,
    _window,
)
