"""How soon a service notices corrupted images, and how often it raises a false alarm.

    nice -n 19 .venv/bin/python -m benchmarks.drift weights/resnet18-cifar10

The window of the service begins with images of the CIFAR-10 test set. From then on, all images are corrupted. The
number of corrupted images until the state is "drifted" is counted. Images are drawn with replacement.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image

from app.engine.drift import DISTRIBUTIONS, Baseline, Distribution, Drift, Window, compare
from app.settings import Settings
from benchmarks.drift.corruptions import CORRUPTIONS, corrupt
from model import Classifier, Prediction, load
from model.commands.exits import exit_codes
from model.errors import CardError
from model.image import test_transform
from model.training.data import load_cifar10_test

_BATCH = 32


class Monitor:
    """The comparison of a service with one worker.

    Args:
        classifier: with the reference of its card.
        settings: of the service.

    Attributes:
        size: number of images in a full window.

    Raises:
        CardError: the card has no reference.
    """

    def __init__(self, classifier: Classifier, settings: Settings) -> None:
        reference = classifier.card.reference
        if reference is None:
            raise CardError(f"{classifier.card.name} has no reference distributions: run tenfold calibrate on it")
        self._settings = settings
        self.size = settings.drift_window
        self._labels = classifier.card.labels
        self._window = Window(Baseline(reference, self.size), self.size)
        self._thresholds: dict[Distribution, float] = {
            "classes": settings.drift_classes,
            "confidence": settings.drift_confidence,
            "in_distribution": settings.drift_in_distribution,
        }

    def add(self, prediction: Prediction) -> Drift:
        """Add the prediction for an image, and compare."""
        self._window.add(prediction)
        return compare(
            self._window.baseline,
            self._window.counts,
            labels=self._labels,
            thresholds=self._thresholds,
            min_images=self._settings.drift_min_images,
        )


class Delay(NamedTuple):
    """When a change was noticed.

    Attributes:
        images: number of changed images until then; None if it was not noticed.
        by: the distributions that had drifted.
    """

    images: int | None
    by: tuple[Distribution, ...] = ()


def classify(classifier: Classifier, pixels: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
    """The predictions for images of the data set, uint8[H, W, 3] each."""
    views = [test_transform(Image.fromarray(image), classifier.card.input)[None] for image in pixels]
    return [
        prediction
        for start in range(0, len(views), _BATCH)
        for prediction in classifier.classify(views[start : start + _BATCH])
    ]


def drawn(predictions: Sequence[Prediction], generator: np.random.Generator) -> Iterator[Prediction]:
    """Predictions drawn with replacement, without end."""
    while True:
        yield predictions[int(generator.integers(len(predictions)))]


def false_alarms(monitor: Monitor, clean: Iterator[Prediction], images: int) -> tuple[int, dict[Distribution, float]]:
    """How many times clean images turn the state to "drifted", and the largest index of each distribution.

    The indices are those of full windows.

    Args:
        monitor: without images.
        clean: predictions for clean images.
        images: number of images.
    """
    alarms, before, largest = 0, "collecting", dict.fromkeys(DISTRIBUTIONS, 0.0)
    for _ in range(images):
        drift = monitor.add(next(clean))
        alarms += drift.state == "drifted" != before
        before = drift.state
        if drift.images == monitor.size:
            for name, compared in drift.comparisons.items():
                largest[name] = max(largest[name], compared.psi)
    return alarms, largest


def delay(monitor: Monitor, clean: Iterator[Prediction], changed: Iterator[Prediction], most: int) -> Delay:
    """Fill the window with clean images, then count the changed ones until the state is "drifted".

    Args:
        monitor: without images.
        clean: predictions for clean images.
        changed: predictions for changed images.
        most: number of changed images, at most.
    """
    for _ in range(monitor.size):
        monitor.add(next(clean))
    for count in range(1, most + 1):
        drift = monitor.add(next(changed))
        if drift.state == "drifted":
            return Delay(count, tuple(name for name, found in drift.comparisons.items() if found.drifted))
    return Delay(None)


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle for CIFAR-10.")],
    data: Annotated[Path, typer.Option(help="Folder that contains cifar-10-batches-py.")] = Path("data"),
    images: Annotated[int, typer.Option(min=1, help="Test images of each corruption and level.")] = 2000,
    clean_images: Annotated[int, typer.Option(min=1, help="Clean images for false alarms.")] = 100_000,
    repetitions: Annotated[int, typer.Option(min=1, help="Orders of the images for each level.")] = 11,
    threads: Annotated[int, typer.Option(min=0, help="Threads of the engine.")] = 1,
) -> None:
    """Print how soon corrupted images are noticed, as a table in Markdown."""
    settings = Settings()
    with exit_codes():
        classifier = load(bundle, device="cpu", threads=threads)
        monitor = Monitor(classifier, settings)
        test = load_cifar10_test(data)
    pixels, truth = test.pixels.numpy(), test.labels.numpy()
    generator = np.random.default_rng(0)
    predictions = classify(classifier, list(pixels))
    clean = drawn(predictions, generator)
    alarms, largest = false_alarms(monitor, clean, clean_images)
    indices = ", ".join(f"{name} {psi:.3f}" for name, psi in largest.items())
    print(f"{alarms} alarms in {clean_images:,} clean images; largest index of a full window: {indices}\n")
    chosen = generator.permutation(len(pixels))[:images]
    print("| corruption | level | accuracy | noticed after | by |\n|---|---|---|---|---|")
    right = [int(predictions[index].probabilities.argmax()) == truth[index] for index in chosen]
    print(f"| none | | {np.mean(right):.1%} | | |", flush=True)
    for name in CORRUPTIONS:
        for level in range(1, 6):
            found = classify(classifier, [corrupt(pixels[index], name, level) for index in chosen])
            right = [
                int(each.probabilities.argmax()) == truth[index] for each, index in zip(found, chosen, strict=True)
            ]
            changed = drawn(found, generator)
            delays = [
                delay(Monitor(classifier, settings), clean, changed, 3 * settings.drift_window)
                for _ in range(repetitions)
            ]
            print(f"| {name} | {level} | {np.mean(right):.1%} | {_described(delays)} |", flush=True)


def _described(delays: Sequence[Delay]) -> str:
    noticed = [each.images for each in delays if each.images is not None]
    if len(noticed) < len(delays):
        when = f"{len(noticed)} of {len(delays)} times" if noticed else "not noticed"
    else:
        when = f"{median(noticed):.0f} images"
    by = [name for name in DISTRIBUTIONS if any(name in each.by for each in delays)]
    return f"{when} | {', '.join(f'`{name}`' for name in by)}"


if __name__ == "__main__":
    typer.run(main)
