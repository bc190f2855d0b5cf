import numpy as np
import pytest
from numpy.typing import NDArray

from model.calibration import OutOfDistributionScore, class_mean_cosine, energy, probabilities_of_images, softmax
from model.card import Calibration, Mixture, OutOfDistribution
from model.training.calibrate import (
    TEMPERATURE_DEVIATION,
    THRESHOLDS,
    UNCALIBRATED,
    Fitted,
    fit,
    fit_calibration,
    fit_out_of_distribution,
    quantiles_of,
    reference_of,
)
from model.training.evaluate import Observed


@pytest.fixture(scope="module")
def logits() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 3, (20_000, 10)).astype(np.float32)


def labels_of(logits: NDArray[np.float32], temperature: float, exponent: float = 0.0) -> NDArray[np.int64]:
    """Classes drawn from the softmax at a temperature and an exponent."""
    cumulative = softmax(logits, temperature, exponent).cumsum(axis=1)
    draws: NDArray[np.int64] = (np.random.default_rng(1).random((len(logits), 1)) > cumulative).sum(axis=1)
    return draws.clip(0, logits.shape[1] - 1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_fit_finds_the_temperature_of_the_labels(logits: NDArray[np.float32], temperature: float) -> None:
    found = fit_calibration(logits[:, None], labels_of(logits, temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert (found.exponent, found.pictures) == (0, 20_000)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("temperature", "exponent"), [(0.4, 0.6), (1.5, -0.5)])
def test_the_fit_finds_the_exponent_of_the_labels(
    logits: NDArray[np.float32], temperature: float, exponent: float, views: int
) -> None:
    spread = np.random.default_rng(2).uniform(0.1, 3, (len(logits), 1)).astype(np.float32)
    varied = logits * spread
    found = fit_calibration(np.stack([varied] * views, axis=1), labels_of(varied, temperature, exponent))
    assert found.temperature == pytest.approx(temperature, rel=0.1)
    assert found.exponent == pytest.approx(exponent, abs=0.05)


def test_there_is_no_exponent_if_its_temperature_is_out_of_bounds(logits: NDArray[np.float32]) -> None:
    varied = logits * np.random.default_rng(2).uniform(0.1, 3, (len(logits), 1)).astype(np.float32)
    found = fit_calibration(varied[:, None], labels_of(varied, 60, -1.0))
    assert found.exponent == 0
    assert found.temperature < 20


def test_an_exponent_needs_enough_images(logits: NDArray[np.float32]) -> None:
    few = logits[:40]
    assert fit_calibration(few[:, None], labels_of(few, 0.4, 0.6)).exponent == 0


def test_other_temperatures_have_a_lower_likelihood(logits: NDArray[np.float32]) -> None:
    few = logits[:300]
    truth = labels_of(few, 1.7)

    def posterior(temperature: float) -> float:
        likelihood = np.log(softmax(few, temperature).astype(np.float64)[np.arange(300), truth]).sum()
        return float(likelihood - (np.log(temperature) / TEMPERATURE_DEVIATION) ** 2 / 2)

    best = fit_calibration(few[:, None], truth).temperature
    assert all(posterior(best) >= posterior(best * factor) for factor in (0.8, 0.99, 1.01, 1.25))


@pytest.mark.parametrize("factor", [0.2, 3.0])
def test_the_temperature_scales_with_the_logits(logits: NDArray[np.float32], factor: float) -> None:
    truth = labels_of(logits, 1.5)
    one, other = fit_calibration(logits[:, None], truth), fit_calibration(logits[:, None] * np.float32(factor), truth)
    assert other.temperature == pytest.approx(one.temperature * factor, abs=2e-3)


def test_the_temperature_is_bounded(logits: NDArray[np.float32]) -> None:
    assert fit_calibration(logits[:, None], logits.argmax(axis=1)).temperature == pytest.approx(0.05), "always right"
    assert fit_calibration(logits[:, None], logits.argmin(axis=1)).temperature == pytest.approx(20), "always wrong"
    assert fit_calibration(logits[:1, None], logits[:1].argmax(axis=1)).pictures == 1


def test_a_few_images_that_are_all_right_do_not_make_everything_certain() -> None:
    """Every class has the same margin, so the lowest loss is at a temperature of 0."""
    truth = np.arange(200) % 10
    logits = 6 * np.eye(10, dtype=np.float32)[truth]
    found = [fit_calibration(logits[:count, None], truth[:count]).temperature for count in (1, 5, 10, 50, 200)]
    assert found == sorted(found, reverse=True)
    assert 0.95 < found[0] < 1
    assert found[2] > 0.8
    assert found[-1] > 0.3, "the probability of the right class is then at most 1 - 2e-8"


def test_without_held_out_images_the_temperature_is_1() -> None:
    assert (UNCALIBRATED.temperature, UNCALIBRATED.pictures) == (1, 0)


def features_of(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features around four class means, and their classes."""
    means = np.random.default_rng(7).normal(size=(4, 6))
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, count)
    return (means[classes] + rng.normal(0, 0.5, (count, 6))).astype(np.float32), classes


def statistics_of(count: int, views: int = 1) -> NDArray[np.float64]:
    """Statistics of images with content."""
    return np.random.default_rng(3).uniform([20, 0.5], [90, 0.95], (count, views, 2))


def fitted(
    features: NDArray[np.float32], classes: NDArray[np.int64], num_classes: int = 4, *, outliers: bool = False
) -> tuple[OutOfDistribution, NDArray[np.float32]]:
    """The constants for images in one view, and the logits that they were fitted to: the first features."""
    logits = np.resize(features, (len(features), num_classes))
    statistics = statistics_of(len(features))
    spec = fit_out_of_distribution(logits[:, None], features[:, None], statistics, classes, outliers=outliers)
    return spec, logits


def test_the_score_is_the_energy_only_for_a_network_that_was_trained_with_outliers() -> None:
    features, classes = features_of(500, seed=0)
    assert [fitted(features, classes, outliers=outliers)[0].score.method for outliers in (False, True)] == [
        "mixture",
        "energy",
    ]


def test_the_constants_of_the_mixture_are_the_class_means_and_the_deviations() -> None:
    features, classes = features_of(500, seed=0)
    spec, logits = fitted(features, classes)
    assert isinstance(spec.score, Mixture)
    means = np.stack([features[classes == label].mean(axis=0) for label in range(4)])
    assert spec.score.feature_mean == pytest.approx(means.mean(axis=0), abs=1e-5)
    for direction, mean in zip(spec.score.class_directions, means - means.mean(axis=0), strict=True):
        assert direction == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)
    cosines = class_mean_cosine(features, np.asarray(spec.score.feature_mean), np.asarray(spec.score.class_directions))
    assert spec.score.energy_weight * energy(logits).std() == pytest.approx(0.5, rel=1e-4)
    assert spec.score.cosine_weight * cosines.std() == pytest.approx(0.5, rel=1e-4)
    assert (spec.thresholds, spec.pictures) == (THRESHOLDS, 500)


def test_the_lowest_statistics_are_those_of_the_images() -> None:
    features, classes = features_of(500, seed=0)
    spec, _ = fitted(features, classes)
    contrast, coarseness = statistics_of(500).min(axis=(0, 1))
    margin = 1 - 1 / np.sqrt(500)
    assert spec.least_contrast == pytest.approx(contrast * margin, abs=0.01)
    assert spec.least_coarseness == pytest.approx(coarseness * margin, abs=0.0001)


def test_few_held_out_images_have_the_class_means_and_statistics_of_the_training_images() -> None:
    """The class mean of one image is the image itself, so that no other one would be as near to it."""
    features, classes = features_of(800, seed=0)
    held, held_classes = features[:8], np.arange(8) % 4
    statistics = statistics_of(800)[:, 0]
    known = Observed(features[8:, :4], features[8:], statistics[8:]), classes[8:]
    constants = fit(
        Fitted(Observed(held[:, :4], held, statistics[:8]), held_classes, held_out=True, known=known), outliers=False
    )
    score = constants.out_of_distribution.score
    assert isinstance(score, Mixture)
    means = np.stack([features[8:][classes[8:] == label].mean(axis=0) for label in range(4)])
    assert score.feature_mean == pytest.approx(means.mean(axis=0), abs=1e-5)
    assert constants.out_of_distribution.least_contrast == pytest.approx(statistics[:, 0].min(), rel=0.05)
    assert constants.out_of_distribution.pictures == constants.calibration.pictures == 8


@pytest.mark.parametrize("count", [5, 10, 20, 50, 200, 1000])
def test_new_images_are_accepted_as_often_as_intended_whatever_the_number_of_images(count: int) -> None:
    """With the lowest of few scores as the quantile 0, a sixth of new images would be below five."""
    rng = np.random.default_rng(0)
    below = []
    for _ in range(max(20, 4000 // count)):
        scores = rng.normal(size=count)
        quantiles = quantiles_of(scores)
        assert (np.diff(quantiles) >= 0).all()
        fractions = np.interp(rng.normal(size=2000), quantiles, np.linspace(0, 1, len(quantiles)))
        below.append([(fractions < limit).mean() for limit in (THRESHOLDS.uncertain, THRESHOLDS.accepted)])
    other, not_accepted = np.mean(below, axis=0)
    most = 1.5 if count > 5 else 2.5
    assert other < most * THRESHOLDS.uncertain
    assert not_accepted < most * THRESHOLDS.accepted


@pytest.mark.parametrize("outliers", [False, True])
def test_the_quantiles_ascend_from_the_lowest_to_the_highest_score(outliers: bool) -> None:
    features, classes = features_of(500, seed=0)
    spec, logits = fitted(features, classes, outliers=outliers)
    scores = np.sort(OutOfDistributionScore(spec).of_views(logits, features))
    assert len(spec.quantiles) == 101
    assert (np.diff(spec.quantiles) >= 0).all()
    for place, expected in ((50, np.median(scores)), (-1, scores[-1])):
        assert spec.quantiles[place] == pytest.approx(expected, abs=1e-5)
    assert scores[0] - scores.std() < spec.quantiles[0] < scores[0]


@pytest.mark.parametrize(("count", "seed", "slack"), [(500, 0, 0.005), (5_000, 0, 0.001), (5_000, 1, 0.02)])
def test_the_thresholds_are_fractions_of_the_images(count: int, seed: int, slack: float) -> None:
    features, classes = features_of(count, seed=0)
    spec, _ = fitted(features, classes)
    features, _ = features_of(count, seed)  # another seed gives other images of the same classes
    score = OutOfDistributionScore(spec)
    fractions = score.fractions(score.of_views(np.resize(features, (count, 4)), features))
    assert (fractions >= spec.thresholds.accepted).mean() == pytest.approx(0.95, abs=slack)
    assert (fractions < spec.thresholds.uncertain).mean() == pytest.approx(0.02, abs=slack)


@pytest.mark.parametrize("count", [1, 3])
def test_classes_without_images_have_no_direction(count: int) -> None:
    features, _ = features_of(count, seed=0)
    spec, _ = fitted(features, np.arange(count) + 2, 6)
    assert isinstance(spec.score, Mixture)
    found = [any(row) for row in spec.score.class_directions]
    assert found == [count > 1 and 2 <= label < 2 + count for label in range(6)]
    assert np.isfinite(spec.quantiles).all()
    OutOfDistribution.model_validate_json(spec.model_dump_json())


def two_views() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits of 5,000 images in two views that differ, float32[N, 2, C], and their classes."""
    rng = np.random.default_rng(2)
    classes = rng.integers(0, 4, 5000)
    logits = 3 * np.eye(4)[classes][:, None] + rng.normal(0, 2, (5000, 2, 4))
    return logits.astype(np.float32), classes


def test_the_temperature_is_that_of_the_views_together() -> None:
    logits, truth = two_views()
    fitted = fit_calibration(logits, truth)

    def nll(temperature: float) -> float:
        together = probabilities_of_images(logits.reshape(-1, 4), [2] * len(logits), temperature, fitted.exponent)
        return float(-np.log(together.astype(np.float64)[np.arange(len(truth)), truth]).mean())

    assert (fitted.views, fitted.pictures) == (2, 5000)
    assert all(nll(fitted.temperature) <= nll(fitted.temperature * factor) for factor in (0.8, 0.97, 1.03, 1.25))
    one_view = fit_calibration(logits[:, :1], truth)
    assert one_view.views == 1
    # The mean of two views has less noise than one view, so it needs a lower temperature.
    assert fitted.temperature < 0.95 * one_view.temperature


@pytest.mark.parametrize("outliers", [False, True])
def test_equal_views_have_the_constants_of_one_view(outliers: bool) -> None:
    features, classes = features_of(300, seed=0)
    one, two = (
        fit_out_of_distribution(
            np.repeat(features[:, None, :4], views, axis=1),
            np.repeat(features[:, None], views, axis=1),
            np.repeat(statistics_of(300), views, axis=1),
            classes,
            outliers=outliers,
        )
        for views in (1, 2)
    )
    assert two.model_copy(update={"views": 1}) == one
    logits, truth = two_views()
    assert fit_calibration(np.repeat(logits[:, :1], 2, axis=1), truth).temperature == pytest.approx(
        fit_calibration(logits[:, :1], truth).temperature, abs=2e-4
    )


def test_the_quantiles_are_those_of_the_weighted_mean_score_of_the_views() -> None:
    features, classes = features_of(500, seed=0)
    views = np.stack([features, features[::-1]], axis=1)
    logits = np.ascontiguousarray(views[..., :4])
    spec = fit_out_of_distribution(logits, views, statistics_of(500, 2), classes, outliers=False)
    by_view = OutOfDistributionScore(spec).of_views(logits.reshape(-1, 4), views.reshape(-1, 6))
    assert (spec.views, spec.pictures) == (2, 500)
    expected = quantiles_of(np.average(by_view.reshape(500, 2), axis=1, weights=[2, 1]))
    assert spec.quantiles == pytest.approx(expected, abs=1e-5)


def test_the_reference_counts_the_predictions(logits: NDArray[np.float32]) -> None:
    count = len(logits)
    features, statistics = np.zeros((count, 1), np.float32), np.full((count, 2), 1.0)
    truth = logits.argmax(axis=1)
    calibration = Calibration(temperature=1.5, exponent=0.3, views=1, pictures=count)
    ood = fit_out_of_distribution(logits[:, None], features[:, None], statistics[:, None], truth, outliers=True)
    found = reference_of(Observed(logits, features, statistics), calibration, ood)
    assert (found.pictures, found.views) == (count, 1)
    assert found.classes == np.bincount(truth, minlength=10).tolist()
    confidence = softmax(logits, 1.5, 0.3).max(axis=1)
    for histogram, values in (
        (found.confidence, confidence),
        (found.in_distribution, np.argsort(np.argsort(energy(logits))) / count),
    ):
        assert len(histogram.pictures) == 10
        assert histogram.pictures == pytest.approx([count / 10] * 10, rel=0.01)
        inside = np.searchsorted(histogram.edges, values, side="right")
        assert histogram.pictures == pytest.approx(np.bincount(inside, minlength=10).tolist(), rel=0.02)


def test_equal_values_are_in_one_bin() -> None:
    """A network that is certain of everything has one bin of confidence."""
    logits = np.eye(10, dtype=np.float32)[np.arange(50) % 10] * 1000
    features, statistics = np.zeros((50, 1), np.float32), np.full((50, 2), 1.0)
    ood = fit_out_of_distribution(
        logits[:, None], features[:, None], statistics[:, None], np.arange(50) % 10, outliers=True
    )
    found = reference_of(Observed(logits, features, statistics), UNCALIBRATED, ood)
    assert found.confidence.edges == []
    assert found.confidence.pictures == [50]
    assert found.classes == [5] * 10
