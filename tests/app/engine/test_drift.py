"""The comparison of live images with held-out images: bins, window, index, limits."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from app.engine.drift import (
    DISTRIBUTIONS,
    Baseline,
    Distribution,
    Drift,
    Window,
    chance,
    compare,
    group_classes,
    stability_index,
)
from model import Prediction, Reference
from model.card import Histogram, Thresholds

LABELS = ["a", "b", "c"]
THRESHOLDS: dict[Distribution, float] = dict.fromkeys(DISTRIBUTIONS, 0.1)


def reference(classes: Sequence[int] = (400, 300, 300)) -> Reference:
    images = sum(classes)
    half = Histogram(edges=[0.5], pictures=[images // 2, images - images // 2])
    return Reference(classes=list(classes), confidence=half, in_distribution=half, views=1, pictures=images)


def prediction(index: int, confidence: float, in_distribution: float, classes: int = 3) -> Prediction:
    probabilities = np.full(classes, (1 - confidence) / (classes - 1), np.float32)
    probabilities[index] = confidence
    return Prediction(
        labels=tuple(map(str, range(classes))),
        probabilities=probabilities,
        score=0.0,
        in_distribution=in_distribution,
        thresholds=Thresholds(accepted=0.05, uncertain=0.02),
        logits=probabilities[None],
        maps=None,
    )


def drift_of(window: Window, min_images: int = 1) -> Drift:
    return compare(window.baseline, window.counts, labels=LABELS, thresholds=THRESHOLDS, min_images=min_images)


def test_the_index_is_that_of_its_definition() -> None:
    live, expected = [30, 50, 20], [100, 300, 600]
    p = [(count + 0.5) / 101.5 for count in live]
    q = [(count + 0.5) / 1001.5 for count in expected]
    assert stability_index(live, expected) == pytest.approx(
        sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    )
    assert stability_index(expected, expected) == 0
    assert stability_index([0, 0, 100], [50, 50, 0]) > 3, "an empty bin is no division by zero"
    assert stability_index([100], [5000]) == 0


@pytest.mark.parametrize(("images", "bins"), [(100, 10), (1000, 10), (4000, 200)])
def test_images_that_resemble_the_reference_are_below_the_limit_of_chance(images: int, bins: int) -> None:
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(bins, 5.0)) * 0.5 + 0.5 / bins
    found = [
        stability_index(generator.multinomial(images, shares).tolist(), generator.multinomial(5000, shares).tolist())
        for _ in range(300)
    ]
    limit = chance(images, 5000, bins)
    assert max(found) < limit < 6 * np.mean(found)
    assert np.mean(found) == pytest.approx((bins - 1) * (1 / images + 1 / 5000), rel=0.25)


def test_the_limit_of_chance_is_a_quantile_of_chi_squared() -> None:
    # scipy.stats.chi2.isf(1e-7, freedom)
    for freedom, quantile in ((2, 32.24), (9, 50.17), (199, 320.6), (999, 1249.0)):
        limit = chance(200, 300, freedom + 1)
        assert quantile < limit / (1 / 200 + 1 / 300) < 1.13 * quantile
    assert chance(100, 100, 1) == 0


def test_rare_classes_are_grouped() -> None:
    assert group_classes([100, 200, 300], least=50) == [0, 1, 2]
    assert group_classes([0, 100, 0, 100], least=50) == [0, 0, 0, 1]
    assert group_classes([10, 10, 10, 10, 10], least=20) == [0, 0, 1, 1, 1], "the rest joins the last group"
    assert group_classes([1, 2], least=50) == [0, 0]
    groups = group_classes([5] * 1000, least=25)
    assert sorted(map(groups.count, set(groups))) == [5] * 200


def test_a_prediction_is_in_the_bin_of_its_values() -> None:
    baseline = Baseline(reference(), 100)
    assert baseline.bins_of(prediction(0, 0.75, 0.1)) == (baseline.groups[0], 1, 0)
    assert baseline.bins_of(prediction(2, 0.4, 0.5)) == (baseline.groups[2], 0, 1), "a limit is in the bin above"


def test_the_window_has_the_last_images() -> None:
    window = Window(Baseline(reference(), 50), 50)
    stream = np.random.default_rng(0).random((180, 3))
    predictions = [prediction(int(row[0] * 3), 0.4 + 0.6 * row[1], row[2]) for row in stream.tolist()]
    for done, each in enumerate(predictions, 1):
        window.add(each)
        last = [window.baseline.bins_of(other) for other in predictions[max(done - 50, 0) : done]]
        for place, name in enumerate(DISTRIBUTIONS):
            bins = [found[place] for found in last]
            assert window.counts[name] == [bins.count(index) for index in range(len(window.counts[name]))]


def test_too_few_images_are_not_compared() -> None:
    window = Window(Baseline(reference(), 100), 100)
    for _ in range(9):
        window.add(prediction(0, 0.9, 0.9))
    assert (drift_of(window, 10).state, drift_of(window, 10).images) == ("collecting", 9)
    window.add(prediction(0, 0.9, 0.9))
    assert drift_of(window, 10).state != "collecting"


def test_a_shift_is_described() -> None:
    window = Window(Baseline(reference(), 1000), 1000)
    shares = {0: 4, 1: 3, 2: 3}
    for _ in range(50):
        for index, count in shares.items():
            for place in range(count):
                window.add(prediction(index, 0.9 if place % 2 else 0.4, 0.9 if place % 2 else 0.4))
    assert drift_of(window).state == "stable"
    for _ in range(1000):
        window.add(prediction(1, 0.4, 0.9))
    found = drift_of(window)
    assert (found.state, found.images) == ("drifted", 1000)
    assert {name: compared.change for name, compared in found.comparisons.items()} == {
        "classes": "b is predicted for 100.0% of the images instead of 30.0%",
        "confidence": "confidence is lower than for held-out images",
        "in_distribution": "in_distribution is higher than for held-out images",
    }


def test_a_threshold_above_the_shift_accepts_it() -> None:
    window = Window(Baseline(reference(), 1000), 1000)
    for _ in range(1000):
        window.add(prediction(1, 0.4, 0.9))
    thresholds: dict[Distribution, float] = dict.fromkeys(DISTRIBUTIONS, 20.0)
    found = compare(window.baseline, window.counts, labels=LABELS, thresholds=thresholds, min_images=100)
    assert found.state == "stable"


def test_a_few_images_differ_by_chance() -> None:
    """The same shares are a drift of many images only."""
    baseline = Baseline(reference(), 1000)
    few = {"classes": [8, 6, 6], "confidence": [13, 7], "in_distribution": [10, 10]}
    many = {name: [100 * count for count in counts] for name, counts in few.items()}
    states = [
        compare(
            baseline,
            {name: counts[name] for name in DISTRIBUTIONS},
            labels=LABELS,
            thresholds=dict.fromkeys(DISTRIBUTIONS, 0.05),
            min_images=10,
        ).state
        for counts in (few, many)
    ]
    assert states == ["stable", "drifted"]
