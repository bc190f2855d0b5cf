import numpy as np
import pytest
from numpy.typing import NDArray

from model.calibration import class_mean_cosine, in_distribution, softmax
from model.card import OutOfDistribution
from model.training.calibrate import ACCEPTED, UNCALIBRATED, fit_out_of_distribution, fit_temperature


@pytest.fixture(scope="module")
def logits() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 3, (20_000, 10)).astype(np.float32)


def labels_of(logits: NDArray[np.float32], temperature: float) -> NDArray[np.int64]:
    """Drawn as often as the softmax at that temperature says."""
    cumulative = softmax(logits, temperature).cumsum(axis=1)
    draws: NDArray[np.int64] = (np.random.default_rng(1).random((len(logits), 1)) > cumulative).sum(axis=1)
    return draws.clip(0, logits.shape[1] - 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(
    logits: NDArray[np.float32], temperature: float
) -> None:
    found = fit_temperature(logits, labels_of(logits, temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.pictures == 20_000


def test_no_other_temperature_is_likelier(logits: NDArray[np.float32]) -> None:
    few = logits[:300]
    truth = labels_of(few, 1.7)

    def likelihood(temperature: float) -> float:
        return float(np.log(softmax(few, temperature).astype(np.float64)[np.arange(300), truth]).mean())

    best = fit_temperature(few, truth).temperature
    assert all(likelihood(best) >= likelihood(best * factor) for factor in (0.8, 0.99, 1.01, 1.25))


@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_the_temperature_scales_with_the_logits(logits: NDArray[np.float32], factor: float) -> None:
    truth = labels_of(logits, 1.5)
    one, other = fit_temperature(logits, truth), fit_temperature(logits * np.float32(factor), truth)
    assert other.temperature == pytest.approx(one.temperature * factor, abs=2e-3)


def test_what_no_temperature_fits_gives_a_bound_and_no_nonsense(logits: NDArray[np.float32]) -> None:
    few = logits[:100]
    assert fit_temperature(few, few.argmax(axis=1)).temperature == pytest.approx(0.05), "always right"
    assert fit_temperature(few, few.argmin(axis=1)).temperature == pytest.approx(20), "always wrong"
    assert fit_temperature(few[:1], few[:1].argmax(axis=1)).pictures == 1


def test_without_held_out_pictures_the_temperature_is_1() -> None:
    assert (UNCALIBRATED.temperature, UNCALIBRATED.pictures) == (1, 0)


def features_of(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features around four class means, and their classes."""
    means = np.random.default_rng(7).normal(size=(4, 6))
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, count)
    return (means[classes] + rng.normal(0, 0.5, (count, 6))).astype(np.float32), classes


def test_the_constants_are_those_of_the_pictures() -> None:
    features, classes = features_of(500, seed=0)
    spec = fit_out_of_distribution(features, classes, 4)
    means = np.stack([features[classes == label].mean(axis=0) for label in range(4)])
    assert spec.feature_mean == pytest.approx(means.mean(axis=0), abs=1e-5)
    for direction, mean in zip(spec.class_directions, means - means.mean(axis=0), strict=True):
        assert direction == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    assert (spec.method, spec.pictures) == ("class-mean-cosine", 500)
    assert spec.threshold == pytest.approx(1 - ACCEPTED)


def test_the_quantiles_ascend_from_the_lowest_score_to_the_highest() -> None:
    features, classes = features_of(500, seed=0)
    spec = fit_out_of_distribution(features, classes, 4)
    scores = np.sort(class_mean_cosine(features, spec))
    assert len(spec.quantiles) == 101
    assert (np.diff(spec.quantiles) >= 0).all()
    for place, expected in ((0, scores[0]), (50, np.median(scores)), (-1, scores[-1])):
        assert spec.quantiles[place] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("count", "seed", "slack"), [(500, 0, 0.005), (5_000, 0, 0.001), (5_000, 1, 0.02)])
def test_the_threshold_accepts_its_share_of_the_pictures(count: int, seed: int, slack: float) -> None:
    spec = fit_out_of_distribution(*features_of(count, seed=0), 4)
    features, _ = features_of(count, seed)  # with another seed, other pictures of the same kind
    accepted = in_distribution(class_mean_cosine(features, spec), spec) >= spec.threshold
    assert accepted.mean() == pytest.approx(ACCEPTED, abs=slack)


@pytest.mark.parametrize("count", [1, 3])
def test_classes_without_pictures_have_no_direction(count: int) -> None:
    features, _ = features_of(count, seed=0)
    spec = fit_out_of_distribution(features, np.arange(count) + 2, 6)
    assert [any(row) for row in spec.class_directions] == [count > 1 and 2 <= label < 2 + count for label in range(6)]
    assert np.isfinite(spec.quantiles).all()
    OutOfDistribution.model_validate_json(spec.model_dump_json())
