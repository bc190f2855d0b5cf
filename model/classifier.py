"""A card and an engine together: pixels to predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.bundle import open_bundle
from model.calibration import class_means, in_distribution, nearest_cosine, softmax
from model.card import ModelCard
from model.engines.base import DeviceName, Engine, EngineName, Outputs
from model.engines.choose import choose
from model.errors import EngineError, IntegrityError

SELF_TEST_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Ranked:
    """One class of a ranking: its label, its number, and its probability of 0..1."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        labels: all C class names.
        probabilities: float32[C], calibrated, summing to 1; the mean over the picture's views.
        in_distribution: the share, 0..1, of held-out pictures of the classes that look no more like them.
        threshold: the card's; a picture below it is probably of none of the classes.
        maps: what each cell of each view adds to each class's logit, float32[V, C, h, w]; see `Outputs`. None if the
            network has no class-activation maps.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    in_distribution: float
    threshold: float
    maps: NDArray[np.float32] | None

    def accepted(self, min_confidence: float = 0.0) -> bool:
        """Whether the picture looks like one of the classes and the first one's probability is high enough."""
        return self.in_distribution >= self.threshold and float(self.probabilities.max()) >= min_confidence

    def top_k(self, k: int) -> list[Ranked]:
        """The k likeliest classes, likeliest first; equal ones in the order of the labels."""
        values = self.probabilities.tolist()  # for so few, Python's sort is quicker than to call NumPy's
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:k]
        return [Ranked(self.labels[index], index, values[index]) for index in order]


class Classifier:
    """The network, loaded and ready.

    Args:
        card: of the bundle.
        engine: that runs it.
    """

    def __init__(self, card: ModelCard, engine: Engine) -> None:
        self.card = card
        self.engine = engine
        self._labels = tuple(card.labels)
        self._means = class_means(card.out_of_distribution)

    def classify(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Classify a batch, in one forward pass.

        Args:
            pictures: N >= 1 of them, each uint8[V, crop, crop, 3]: one or more views after the test transform.

        Returns:
            N predictions, in order.

        Raises:
            EngineError: the engine gave another number of rows than asked for, or numbers that are not finite.
        """
        views = np.concatenate(pictures)
        out = self.engine.run(views)
        logits, features, maps = out
        rows = (len(views), len(self._labels))
        if logits.shape != rows or features.shape[:1] != rows[:1] or (maps is not None and maps.shape[:-2] != rows):
            raise EngineError(
                f"the engine gave logits of shape {logits.shape}, features of shape {features.shape} and maps of shape "
                f"{None if maps is None else maps.shape} for {len(views)} views"
            )
        if not all(np.isfinite(part).all() for part in out if part is not None):
            raise EngineError("the engine gave logits, features or maps that are not finite")
        by_view, scores = self._interpreted(out)
        first = np.cumsum([0, *(len(picture) for picture in pictures[:-1])])
        counts = np.array([len(picture) for picture in pictures])
        probabilities = (np.add.reduceat(by_view, first) / counts[:, None]).astype(np.float32)
        shares = in_distribution(np.add.reduceat(scores, first) / counts, self.card.out_of_distribution)
        threshold = self.card.out_of_distribution.threshold
        return [
            Prediction(
                self._labels, row, float(share), threshold, None if maps is None else maps[start : start + count]
            )
            for row, share, start, count in zip(probabilities, shares, first, counts, strict=True)
        ]

    def _interpreted(self, out: Outputs) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Calibrated probabilities float32[N, C] and out-of-distribution scores float64[N]."""
        return (
            softmax(out.logits, self.card.calibration.temperature),
            nearest_cosine(out.features, *self._means),
        )

    def self_test(self) -> None:
        """Run the card's synthetic inputs through the engine and through the card's constants.

        Raises:
            IntegrityError: what comes out is not what the card says.
        """
        test = self.card.self_test_on(self.engine.name)
        out = self.engine.run(self_test_pixels(test.seed, len(test.logits), self.card.input.crop))
        if out.logits.shape != np.shape(test.logits) or out.features.shape != (
            len(test.logits),
            len(self.card.out_of_distribution.feature_mean),
        ):
            raise self._failed("shapes")
        if out.maps is not None and out.maps.shape[:-2] != out.logits.shape:
            raise self._failed("shapes")
        # The rest of a logit without its map is the classifier's bias, the same for all images.
        bias = np.zeros_like(out.logits) if out.maps is None else out.logits - out.maps.sum(axis=(2, 3))
        probabilities, scores = self._interpreted(out)
        shares = in_distribution(scores, self.card.out_of_distribution)
        for name, found, expected, scale in (
            ("logits", out.logits, test.logits, np.abs(test.logits).max()),
            ("maps", bias, bias[:1], np.abs(test.logits).max()),
            ("scores", scores, test.scores, np.abs(test.scores).max()),
            ("probabilities", probabilities, test.probabilities, 1.0),
            ("in_distribution", shares, test.in_distribution, 1.0),
        ):
            if not np.abs(found - np.asarray(expected)).max() <= test.tolerance * scale:
                raise self._failed(name)

    def _failed(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"the self-test of {self.card.name} failed in its {what} on {self.engine.name} ({self.engine.device}, "
            f"{self.engine.precision}): fetch the bundle again or choose another engine"
        )


def load(
    folder: Path | str, *, engine: EngineName = "auto", device: DeviceName = "auto", threads: int = 0
) -> Classifier:
    """Open a bundle, check its hashes, construct the engine, warm it up and run the self-test.

    Raises:
        CardError: the card is missing or malformed.
        IntegrityError: a hash or the self-test disagrees with the card.
        EngineError: the engine is not installed or has no such device.
    """
    bundle = open_bundle(Path(folder))
    classifier = Classifier(bundle.card, choose(bundle, engine=engine, device=device, threads=threads))
    classifier.self_test()
    return classifier


def self_test_pixels(seed: int, count: int, side: int) -> NDArray[np.uint8]:
    """Seeded pictures of large coloured tiles, uint8[count, side, side, 3].

    The tiles come from NumPy's legacy generator, whose stream is frozen (NEP 19).
    """
    tiles = np.random.RandomState(seed).randint(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    nearest = np.arange(side) * 4 // side
    return tiles[:, nearest][:, :, nearest]
