"""Stand-ins that the tests hand to the service: an engine that obeys, and images made to order."""

import io
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model import Classifier, ModelCard
from model.engines.base import Outputs

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

# Of the engine below: twelve numbers of an image to ten logits.
HEAD = np.random.RandomState(0).normal(0, 4, (12, 10))

CARD = ModelCard.model_validate(
    {
        "format_version": 5,
        "name": "fake-net",
        "architecture": {"name": "resnet18", "arguments": {"num_classes": 10}},
        "labels": LABELS,
        "input": {
            "resize": 32,
            "crop": 32,
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
        },
        "complexity": {"parameters": 130, "multiply_adds": 120},
        "training": {
            "recipe": {},
            "epochs": 1,
            "seed": 0,
            "pictures": 1,
            "dataset_md5": {},
            "commit": "unknown",
            "device": "cpu",
            "torch": "none",
            "seconds": 0.0,
        },
        "metrics": {
            "top1": 0.1,
            "nll": 2.3,
            "ece": 0.0,
            "ece_uncalibrated": 0.1,
            "confusion": [*np.roll(np.eye(10, dtype=int), 1, axis=1).tolist()[:9], [0] * 9 + [1]],
            "reliability": [{"confidence": 0.1, "accuracy": 0.1, "pictures": 10}],
            "mistakes": [],
            "auroc": {"drawn shapes": 0.5},
            "accepted": {"test": 0.5, "drawn shapes": 0.5},
            "other": {"test": 0.25, "drawn shapes": 0.25},
            "pictures": 10,
            "measured": "never",
        },
        "calibration": {"temperature": 2.0, "views": 1, "pictures": 1},
        "out_of_distribution": {
            "score": {
                "method": "class-mean-cosine",
                "feature_mean": [0.5] * 12,
                "class_directions": (HEAD / np.linalg.norm(HEAD, axis=0)).T.tolist(),
            },
            "quantiles": [0.2, 0.4, 0.5, 0.6, 0.8],
            "least_contrast": 0.0,
            "least_coarseness": 0.0,
            "thresholds": {"accepted": 0.25, "uncertain": 0.125},
            "views": 1,
            "pictures": 1,
        },
        "reference": {
            "classes": [10] * 10,
            "confidence": {"edges": [0.3, 0.5, 0.7], "pictures": [25] * 4},
            "in_distribution": {"edges": [0.25, 0.5, 0.75], "pictures": [25] * 4},
            "views": 1,
            "pictures": 100,
        },
        "files": {"model.safetensors": "0123456789abcdef" * 4},
        "self_test": {
            "seed": 0,
            "logits": [[0.0] * 10],
            "scores": [0.0],
            "probabilities": [[0.1] * 10],
            "in_distribution": [0.0],
            "tolerance": 0.1,
        },
        "openvino": None,
    }
)


class FakeEngine:
    """A linear layer on the mean colours of the quarters of a view. It can be blocked or made to fail.

    Attributes:
        batches: number of views in each call.
        failure: raised by every call while it is set.
        surplus: rows in the outputs beyond the number of views.
        seconds: duration of each call.
        has_maps: whether the outputs have class-activation maps.
    """

    name = "fake"
    device = "cpu"
    precision = "float32"
    preferred_batch = 32

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.failure: BaseException | None = None
        self.surplus = 0
        self.has_maps = True
        self.seconds = 0.0
        self._open = threading.Event()
        self._open.set()
        self._entered = threading.Semaphore(0)

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        self.batches.append(len(pixels))
        self._entered.release()
        assert self._open.wait(60), "the test never released its engine"
        if self.seconds:
            threading.Event().wait(self.seconds)
        if self.failure:
            raise self.failure
        quarters = pixels.reshape(len(pixels), 2, pixels.shape[1] // 2, 2, pixels.shape[2] // 2, 3).mean(axis=(2, 4))
        features = np.concatenate([quarters.reshape(len(pixels), 12) / 255, np.zeros((self.surplus, 12))])
        # Each quarter is a cell.
        parts = features.reshape(-1, 4, 3, 1) * HEAD.reshape(4, 3, 10)
        maps = parts.sum(axis=2).swapaxes(1, 2).reshape(-1, 10, 2, 2)
        logits = features @ HEAD
        return Outputs(
            logits.astype(np.float32), features.astype(np.float32), maps.astype(np.float32) if self.has_maps else None
        )

    def block(self) -> None:
        """Block every call from now on."""
        self._open.clear()

    def release(self) -> None:
        """Continue the calls that are blocked."""
        self._open.set()

    def wait_entered(self, times: int = 1) -> None:
        """Wait until `times` more calls have begun."""
        for _ in range(times):
            assert self._entered.acquire(timeout=20), "the engine was not called"

    @property
    def views(self) -> int:
        """Views seen so far."""
        return sum(self.batches)


def fake_classifier(engine: FakeEngine, name: str = CARD.name) -> Classifier:
    """The card above, under a name, with this engine."""
    return Classifier(CARD.model_copy(update={"name": name}), engine)


def random_pixels(seed: int, side: int = 32) -> NDArray[np.uint8]:
    """An image of four coloured quarters, no two seeds alike, uint8[side, side, 3]."""
    quarters = np.random.RandomState(seed).randint(0, 256, (2, 2, 3), dtype=np.uint8)
    return quarters.repeat(side // 2, axis=0).repeat(side // 2, axis=1)


def image_file(seed: int = 0, *, size: tuple[int, int] | None = None, kind: str = "PNG", **options: Any) -> bytes:
    """An image file.

    Args:
        seed: of `random_pixels`.
        size: width and height, if not 32 x 32.
        kind: Pillow's name of the format.
        options: of Pillow's save.
    """
    image = Image.fromarray(random_pixels(seed))
    return _saved(image.resize(size) if size else image, kind, **options)


def photo(seed: int = 0, *, size: tuple[int, int] = (200, 150)) -> bytes:
    """A PNG of 8 x 6 coloured tiles, large enough for several views, no two of which are alike."""
    tiles = np.random.RandomState(seed).randint(0, 256, (6, 8, 3), dtype=np.uint8)
    return _saved(Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST), "PNG")


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
