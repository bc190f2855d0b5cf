"""From pixels to predictions: an engine with the card of its bundle."""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.bundle import open_bundle
from model.calibration import (
    OutOfDistributionScore,
    Verdict,
    pixel_statistics,
    probabilities_of_images,
    softmax,
    verdict,
)
from model.card import ModelCard, Thresholds
from model.engines.base import Engine, EngineName, GradientEngine, Outputs
from model.engines.choose import choose
from model.errors import EngineError, IntegrityError, NotExplainable
from model.views import CONFIDENT, FIRST_VIEWS, MAX_VIEWS, starts_of, view_weights

SELF_TEST_IMAGES = 4


@dataclass(frozen=True, slots=True)
class Ranked:
    """One class of a ranking.

    Attributes:
        label: name of the class.
        index: number of the class.
        probability: 0..1.
    """

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """The result for one image.

    Attributes:
        labels: names of all C classes.
        probabilities: calibrated, of the V views that were run together, float32[C]. Their sum is 1. See
            `model.calibration.probabilities_of_images`.
        score: the out-of-distribution score, -inf for an image without content; see `OutOfDistributionScore`.
        in_distribution: fraction of held-out images that do not score higher, 0..1.
        thresholds: of the card.
        logits: of each view that was run, before calibration, float32[V, C].
        maps: class-activation maps of each view, float32[V, C, h, w]; see `Outputs`. None if the network has none.
    """

    labels: tuple[str, ...]
    probabilities: NDArray[np.float32]
    score: float
    in_distribution: float
    thresholds: Thresholds
    logits: NDArray[np.float32]
    maps: NDArray[np.float32] | None

    def verdict(self, min_confidence: float = 0.0) -> Verdict:
        """Whether the image appears to be one of the classes; see `model.calibration.verdict`.

        Args:
            min_confidence: an image is not accepted if its most probable class has a lower probability.
        """
        return verdict(self.in_distribution, float(self.probabilities.max()), self.thresholds, min_confidence)

    @property
    def views(self) -> int:
        """How many views of the image were run, the first ones."""
        return len(self.logits)

    @property
    def mean_logits(self) -> NDArray[np.float32]:
        """The mean of the logits over the views by `model.views.view_weights`, float32[C]."""
        return (view_weights(self.views) @ self.logits).astype(np.float32)

    def accepted(self, min_confidence: float = 0.0) -> bool:
        """Whether the verdict is "accepted"."""
        return self.verdict(min_confidence) == "accepted"

    def top_k(self, k: int) -> list[Ranked]:
        """The k most probable classes, in descending order. Equal ones have the order of the labels."""
        values = self.probabilities.tolist()  # for a few classes, sorting a list is faster than NumPy
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)[:k]
        return [Ranked(self.labels[index], index, values[index]) for index in order]


Passes = Generator[NDArray[np.uint8], Outputs, list[Prediction]]
"""See `Classifier.passes`."""


class Classifier:
    """Runs an engine, and turns its outputs into predictions.

    The constants of the card are applied whatever the number of views of an image is. They are fitted for
    `card.calibration.views` and `card.out_of_distribution.views`.

    Args:
        card: of the bundle.
        engine: with the network of the bundle.

    Attributes:
        images_per_second: of the engine in the self-test, which has few images; 0 before it.
    """

    def __init__(self, card: ModelCard, engine: Engine) -> None:
        self.card = card
        self.engine = engine
        self.images_per_second = 0.0
        self._labels = tuple(card.labels)
        self._score = OutOfDistributionScore(card.out_of_distribution)

    def classify(self, images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
        """Classify a batch of images.

        The engine first runs up to `FIRST_VIEWS` views of each image, then the other views of the images whose first
        views give no class a probability of `CONFIDENT`.

        Args:
            images: N >= 1 images in one or more views after the test transform, each uint8[V, crop, crop, 3].

        Returns:
            N predictions, in the order of the images.

        Raises:
            EngineError: the engine returned outputs of another shape, or values that are not finite.
        """
        passes = self.passes(images)
        views = next(passes)
        while True:
            try:
                views = passes.send(self.engine.run(views))
            except StopIteration as end:
                predictions: list[Prediction] = end.value
                return predictions

    def passes(self, images: Sequence[NDArray[np.uint8]]) -> Passes:
        """The computation of `classify` without the engine, so that its forward passes can run in another thread.

        The generator yields the views of a forward pass, uint8[N, crop, crop, 3], and receives its outputs. It returns
        the predictions.

        Args:
            images: as for `classify`.
        """
        counts = [min(len(image), FIRST_VIEWS) for image in images]
        views = np.concatenate([image[:FIRST_VIEWS] for image in images])
        out = self._validated((yield views), len(views))
        probabilities = self._probabilities(out.logits, counts)
        unsure = [
            number
            for number, image in enumerate(images)
            if len(image) > FIRST_VIEWS and probabilities[number].max() < CONFIDENT
        ]
        if unsure:
            further = np.concatenate([images[number][FIRST_VIEWS:] for number in unsure])
            # No call gets more views than the first one, except for those of one image.
            size = max(len(views), MAX_VIEWS - FIRST_VIEWS)
            outs = []
            for start in range(0, len(further), size):
                part = further[start : start + size]
                outs.append(self._validated((yield part), len(part)))
            image_of_row = np.repeat(np.arange(len(images)), counts)
            added = np.repeat(unsure, [len(images[number]) - FIRST_VIEWS for number in unsure])
            image_of_row = np.concatenate([image_of_row, added])
            # Stable, so that the first views of an image stay before its further ones.
            order = np.argsort(image_of_row, kind="stable")
            counts = np.bincount(image_of_row).tolist()
            out = _joined([out, *outs], order)
            views = np.concatenate([views, further])[order]
            probabilities = self._probabilities(out.logits, counts)
        scores = self._score.of_images(out.logits, out.features, pixel_statistics(views), counts)
        fractions = self._score.fractions(scores)
        thresholds = self.card.out_of_distribution.thresholds
        return [
            Prediction(
                labels=self._labels,
                probabilities=row,
                score=score,
                in_distribution=fraction,
                thresholds=thresholds,
                logits=out.logits[start : start + count],
                maps=None if out.maps is None else out.maps[start : start + count],
            )
            for row, score, fraction, start, count in zip(
                probabilities, scores.tolist(), fractions.tolist(), starts_of(counts).tolist(), counts, strict=True
            )
        ]

    def _probabilities(self, logits: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float32]:
        calibration = self.card.calibration
        return probabilities_of_images(logits, counts, calibration.temperature, calibration.exponent)

    def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
        """Grad-CAM of one image, for a network whose predictions have no maps. It takes another forward pass.

        Args:
            pixels: the views of the image, uint8[V, crop, crop, 3].
            index: of the class to explain.

        Returns:
            float32[V, h, w], see `GradientEngine.grad_cam`.

        Raises:
            NotExplainable: the engine computes no gradients, or the network's last feature map has no places.
            EngineError: the values are not finite.
        """
        if not isinstance(self.engine, GradientEngine):
            raise NotExplainable(
                f"{self.card.name} has no class-activation maps, and the engine {self.engine.name} computes no "
                "gradients: set the engine to torch"
            )
        maps = self.engine.grad_cam(pixels, index)
        if maps is None:
            raise NotExplainable(
                f"the last features of {self.card.architecture.name} are not places in the image: "
                "send the image to /predict"
            )
        if not np.isfinite(maps).all():
            raise EngineError("the engine returned maps that are not finite")
        return maps

    def _validated(self, out: Outputs, views: int) -> Outputs:
        logits, features, maps = out
        rows = (views, len(self._labels))
        if logits.shape != rows or features.shape[:1] != rows[:1] or (maps is not None and maps.shape[:-2] != rows):
            raise EngineError(
                f"the engine returned logits of shape {logits.shape}, features of shape {features.shape} and maps of "
                f"shape {None if maps is None else maps.shape} for {views} views"
            )
        if not all(np.isfinite(part).all() for part in out if part is not None):
            raise EngineError("the engine returned logits, features or maps that are not finite")
        return out

    def self_test(self) -> None:
        """Run the synthetic images of the card, and compare the outputs and predictions with the expected ones.

        Class-activation maps are checked if the engine returns them: with a constant of the class, their sum is the
        logit.

        Raises:
            IntegrityError: an output differs from the card by more than its tolerance.
        """
        test = self.card.self_test_on(self.engine.name)
        pixels = self_test_pixels(test.seed, len(test.logits), self.card.input.crop)
        began = time.perf_counter()
        out = self.engine.run(pixels)
        self.images_per_second = len(pixels) / (time.perf_counter() - began)
        width = self._score.width or out.features.shape[-1]  # the energy needs no features
        if (out.logits.shape, out.features.shape) != (np.shape(test.logits), (len(test.logits), width)):
            raise self._failed("shapes")
        # A network that was trained with outliers gives the synthetic images logits near 0.
        largest = max(np.abs(test.logits).max(), 1.0)
        scores = self._score.of_views(out.logits, out.features)
        quantiles = self.card.out_of_distribution.quantiles
        spread = max(quantiles[-1] - quantiles[0], 0.1 * np.abs(test.scores).max())
        calibration = self.card.calibration
        probabilities = softmax(out.logits, calibration.temperature, calibration.exponent)
        compared = [
            ("logits", out.logits, test.logits, largest),
            ("scores", scores, test.scores, spread),
            ("probabilities", probabilities, test.probabilities, 1.0),
            ("in_distribution", self._score.fractions(scores), test.in_distribution, 1.0),
        ]
        if out.maps is not None:
            if out.maps.shape[:-2] != out.logits.shape:
                raise self._failed("shapes")
            constants = out.logits - out.maps.sum(axis=(2, 3))
            compared.append(("maps", constants, constants[:1], largest))
        for name, found, expected, scale in compared:
            if not np.abs(found - np.asarray(expected)).max() <= test.tolerance * scale:
                raise self._failed(name)

    def _failed(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"the self-test of {self.card.name} failed in its {what} on {self.engine.name} ({self.engine.device}, "
            f"{self.engine.precision}): fetch the bundle again or choose another engine"
        )


def _joined(outs: Sequence[Outputs], order: NDArray[np.int64]) -> Outputs:
    """The rows of all, in this order, int64[N]."""
    logits, features = (np.concatenate(parts)[order] for parts in zip(*(out[:2] for out in outs), strict=True))
    maps = [out.maps for out in outs if out.maps is not None]
    return Outputs(logits, features, np.concatenate(maps)[order] if maps else None)


def load(folder: Path | str, *, engine: EngineName = "auto", device: str = "auto", threads: int = 0) -> Classifier:
    """Open a bundle, construct its engine and run the self-test.

    Args:
        folder: of the bundle.
        engine: runtime; "auto" selects the fastest one that is installed and that the bundle has a model for.
        device: "auto", "cpu", "cuda" or one of several GPUs, such as "cuda:1". "auto" uses CUDA if available.
        threads: number of threads on a CPU; 0 is the default of the runtime.

    Raises:
        CardError: the card is missing or invalid.
        IntegrityError: a hash or the self-test disagrees with the card.
        EngineError: the runtime is not installed or has no such device.
    """
    bundle = open_bundle(Path(folder))
    classifier = Classifier(bundle.card, choose(bundle, engine=engine, device=device, threads=threads))
    classifier.self_test()
    return classifier


def self_test_pixels(seed: int, count: int, side: int) -> NDArray[np.uint8]:
    """Random images of 4 x 4 coloured tiles, the same for each seed.

    They are drawn by NumPy's legacy generator, whose stream never changes (NEP 19).

    Returns:
        uint8[count, side, side, 3].
    """
    tiles = np.random.RandomState(seed).randint(0, 256, (count, 4, 4, 3), dtype=np.uint8)
    nearest = np.arange(side) * 4 // side
    return tiles[:, nearest][:, :, nearest]
