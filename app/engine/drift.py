"""Whether the images of a model still resemble the held-out images of its training.

The predictions for the last images are compared with the reference distributions of the card by the population
stability index (PSI): the sum over the bins of (p - q) ln(p / q), with the shares p of these images and q of the
reference. It is the symmetric Kullback-Leibler divergence. Yurdakul 2018, "Statistical properties of population
stability index", shows that for n images that resemble m reference images it is distributed as (1/n + 1/m) times a
chi-squared variable with one degree of freedom less than bins.
"""

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, get_args

from model import Prediction, Reference

Distribution = Literal["classes", "confidence", "in_distribution"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)

Counts = Mapping[Distribution, Sequence[int]]
"""Number of images by bin, for each distribution."""

DriftState = Literal["collecting", "stable", "drifted"]

# Images of a group of classes in a full window, if they resemble the reference. The PSI of rarer classes is noise.
_GROUP_IMAGES = 5
# Added to the images of each bin, so that no share is 0.
_PSEUDO_COUNT = 0.5
# Probability that the PSI of images that resemble the reference is above `chance`.
_FALSE_ALARM = 1e-7


class Baseline:
    """The reference distributions of a model, with rare classes grouped.

    Args:
        reference: of the card.
        window: number of images that are compared with it.

    Attributes:
        groups: number of the group of each class.
        counts: number of held-out images by bin, for each distribution.
    """

    def __init__(self, reference: Reference, window: int) -> None:
        self.groups = group_classes(reference.classes, least=_GROUP_IMAGES * reference.pictures / window)
        self._confidence = reference.confidence.edges
        self._in_distribution = reference.in_distribution.edges
        classes = [0] * (max(self.groups) + 1)
        for group, images in zip(self.groups, reference.classes, strict=True):
            classes[group] += images
        self.counts: Counts = {
            "classes": classes,
            "confidence": reference.confidence.pictures,
            "in_distribution": reference.in_distribution.pictures,
        }

    def bins_of(self, prediction: Prediction) -> tuple[int, int, int]:
        """The bin of a prediction in each of `DISTRIBUTIONS`."""
        index = int(prediction.probabilities.argmax())
        return (
            self.groups[index],
            bisect_right(self._confidence, float(prediction.probabilities[index])),
            bisect_right(self._in_distribution, prediction.in_distribution),
        )


def group_classes(images: Sequence[int], least: float) -> list[int]:
    """The number of a group for each class, in ascending order of their images.

    A group ends with the class with which it has at least `least` images. A class with as many is a group of its own,
    unless rarer classes precede it that have fewer together.

    Args:
        images: number of images of each class.
        least: number of images of a group.
    """
    groups, group, held = [0] * len(images), 0, 0
    for index in sorted(range(len(images)), key=images.__getitem__):
        groups[index] = group
        held += images[index]
        if held >= least:
            group, held = group + 1, 0
    last = max(group - 1, 0)  # what remains is too few for a group
    return [min(each, last) for each in groups]


class Window:
    """The last predictions of a model, by their bins. It belongs to a loaded model, so other weights have another one.

    `add` takes the same time for any size. An image takes six bytes.

    Args:
        baseline: of the model.
        size: number of images.

    Attributes:
        counts: number of these images by bin, for each distribution.
    """

    def __init__(self, baseline: Baseline, size: int) -> None:
        self.baseline = baseline
        self.counts: dict[Distribution, list[int]] = {name: [0] * len(bins) for name, bins in baseline.counts.items()}
        self._bins = [array("H", bytes(2 * size)) for _ in DISTRIBUTIONS]
        self._size = size
        self._next = 0
        self._full = False

    def add(self, prediction: Prediction) -> None:
        """Put a prediction in the place of the oldest one."""
        place = self._next
        found = self.baseline.bins_of(prediction)
        for counts, bins, index in zip(self.counts.values(), self._bins, found, strict=True):
            if self._full:
                counts[bins[place]] -= 1
            counts[index] += 1
            bins[place] = index
        self._next = place + 1
        if self._next == self._size:
            self._next, self._full = 0, True


@dataclass(frozen=True, slots=True)
class Comparison:
    """One distribution of live images against the reference.

    Attributes:
        psi: population stability index, >= 0.
        threshold: of the settings. A lower PSI is too small a shift to matter.
        chance: a PSI that images which resemble the reference exceed with probability 1e-7.
        change: how the distribution differs, for people.
    """

    psi: float
    threshold: float
    chance: float
    change: str

    @property
    def limit(self) -> float:
        """Above it, the distribution has drifted."""
        return max(self.threshold, self.chance)

    @property
    def drifted(self) -> bool:
        """Whether the shift is large enough to matter, and more than chance."""
        return self.psi > self.limit


@dataclass(frozen=True, slots=True)
class Drift:
    """The live images of a model against its reference.

    Attributes:
        images: number of images that are compared.
        comparisons: of each distribution; empty as long as there are too few images.
    """

    images: int
    comparisons: Mapping[Distribution, Comparison]

    @property
    def state(self) -> DriftState:
        """Whether any of the distributions has drifted."""
        if not self.comparisons:
            return "collecting"
        return "drifted" if any(found.drifted for found in self.comparisons.values()) else "stable"


def compare(
    baseline: Baseline,
    counts: Counts,
    *,
    labels: Sequence[str],
    thresholds: Mapping[Distribution, float],
    min_images: int,
) -> Drift:
    """Compare live images with the reference.

    Args:
        baseline: of the model.
        counts: of the live images, with the bins of the baseline.
        labels: names of the classes.
        thresholds: lowest PSI that matters, for each distribution.
        min_images: no comparison of fewer images.
    """
    images = sum(counts["classes"])
    if images < min_images:
        return Drift(images, {})
    comparisons = {}
    for name in DISTRIBUTIONS:
        live, reference = counts[name], baseline.counts[name]
        comparisons[name] = Comparison(
            psi=stability_index(live, reference),
            threshold=thresholds[name],
            chance=chance(images, sum(reference), len(reference)),
            change=_class_change(live, baseline, labels) if name == "classes" else _value_change(name, live, reference),
        )
    return Drift(images, comparisons)


def stability_index(live: Sequence[int], reference: Sequence[int]) -> float:
    """The population stability index of two distributions over the same bins.

    Half an image is added to each bin of both.
    """
    pairs = zip(_shares(live), _shares(reference), strict=True)
    return math.fsum((p - q) * math.log(p / q) for p, q in pairs)


def chance(images: int, reference: int, bins: int) -> float:
    """A PSI that images which resemble the reference exceed with probability 1e-7.

    The quantile of the chi-squared distribution is that of Wilson and Hilferty 1931.

    Args:
        images: number of live images.
        reference: number of reference images.
        bins: number of bins.
    """
    freedom = bins - 1
    if not freedom:
        return 0.0
    spread = 2 / (9 * freedom)
    quantile = freedom * (1 - spread + NormalDist().inv_cdf(1 - _FALSE_ALARM) * math.sqrt(spread)) ** 3
    return (1 / images + 1 / reference) * quantile


def _shares(counts: Sequence[int]) -> Iterable[float]:
    total = sum(counts) + _PSEUDO_COUNT * len(counts)
    return ((images + _PSEUDO_COUNT) / total for images in counts)


def _class_change(live: Sequence[int], baseline: Baseline, labels: Sequence[str]) -> str:
    """The group of classes whose share has changed most."""
    reference = baseline.counts["classes"]
    now, before = ([images / max(sum(counts), 1) for images in counts] for counts in (live, reference))
    group = max(range(len(now)), key=lambda index: abs(now[index] - before[index]))
    names = [label for label, own in zip(labels, baseline.groups, strict=True) if own == group]
    name = names[0] if len(names) == 1 else f"{names[0]} or one of {len(names) - 1} other rare classes"
    return f"{name} is predicted for {now[group]:.1%} of the images instead of {before[group]:.1%}"


def _value_change(name: str, live: Sequence[int], reference: Sequence[int]) -> str:
    """Whether values are lower or higher, by the mean bin."""
    now, before = (
        sum(place * images for place, images in enumerate(counts)) / max(sum(counts), 1) for counts in (live, reference)
    )
    return f"{name} is {'lower' if now < before else 'higher'} than for held-out images"
