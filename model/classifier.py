"""A card and an engine together: pixels to predictions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.bundle import open_bundle
from model.card import ModelCard
from model.engines.base import DeviceName, Engine, EngineName, choose
from model.errors import EngineError, IntegrityError

SELF_TEST_PICTURES = 4


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
        probabilities: float32[C], summing to 1.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]

    def top_k(self, k: int) -> list[Ranked]:
        """The k likeliest classes, likeliest first; equal ones in the order of the labels."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [Ranked(self.labels[index], int(index), float(self.probabilities[index])) for index in order]


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

    def classify(self, pixels: NDArray[np.uint8]) -> list[Prediction]:
        """Classify a batch.

        Args:
            pixels: uint8[N, crop, crop, 3], N >= 1, after the test transform.

        Returns:
            N predictions, in order.

        Raises:
            EngineError: the engine gave another number of rows than asked for, or numbers that are not finite.
        """
        logits = self.engine.logits(pixels)
        if logits.shape != (len(pixels), len(self._labels)):
            raise EngineError(f"the engine gave logits of shape {logits.shape} for {len(pixels)} pictures")
        if not np.isfinite(logits).all():
            raise EngineError("the engine gave logits that are not finite")
        return [Prediction(self._labels, row) for row in softmax(logits)]

    def self_test(self) -> None:
        """Run the card's synthetic inputs through the engine.

        Raises:
            IntegrityError: the logits are not those of the card.
        """
        test = self.card.self_test
        expected = np.asarray(test.logits, np.float32)
        found = self.engine.logits(self_test_pixels(test.seed, len(expected), self.card.input.crop))
        allowed = test.tolerance * float(np.abs(expected).max())
        if found.shape != expected.shape or not np.abs(found - expected).max() <= allowed:
            raise IntegrityError(
                f"the self-test of {self.card.name} failed on {self.engine.name} ({self.engine.device}, "
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


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of each row, float32[N, C]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities.astype(np.float32)


def self_test_pixels(seed: int, count: int, side: int) -> NDArray[np.uint8]:
    """Seeded pictures of large coloured tiles, uint8[count, side, side, 3].

    The tiles come from NumPy's legacy generator, whose stream is frozen (NEP 19).
    """
    tiles = np.random.RandomState(seed).randint(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    nearest = np.arange(side) * 4 // side
    return tiles[:, nearest][:, :, nearest]
