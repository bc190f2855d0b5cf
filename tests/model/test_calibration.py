import numpy as np
import pytest

from model.calibration import (
    OutOfDistributionScore,
    Verdict,
    class_mean_cosine,
    energy,
    pixel_statistics,
    softmax,
    verdict,
)
from model.card import ClassMeanCosine, Energy, Mixture, OutOfDistribution, Score, Thresholds

MEAN, DIRECTIONS = [0.5, 0.0], [[1.0, 0.0], [0.0, 1.0]]
COSINE = ClassMeanCosine(method="class-mean-cosine", feature_mean=MEAN, class_directions=DIRECTIONS)
ENERGY = Energy(method="energy")
MIXTURE = Mixture(
    method="mixture", feature_mean=MEAN, class_directions=DIRECTIONS, energy_weight=0.25, cosine_weight=3.0
)
THRESHOLDS = Thresholds(accepted=0.05, uncertain=0.02)


def spec_of(score: Score = ENERGY, quantiles: tuple[float, ...] = (0.0, 1.0)) -> OutOfDistribution:
    return OutOfDistribution(
        score=score,
        quantiles=list(quantiles),
        least_contrast=5.0,
        least_coarseness=0.45,
        thresholds=THRESHOLDS,
        views=1,
        pictures=1,
    )


def test_softmax_of_known_and_of_extreme_values() -> None:
    found = softmax(np.array([[np.log(1), np.log(2), np.log(5)], [3e38, 0, -3e38]], np.float32))
    np.testing.assert_allclose(found, np.array([[1 / 8, 2 / 8, 5 / 8], [1, 0, 0]]), rtol=1e-6)
    assert found.dtype == np.float32


def test_a_temperature_above_one_flattens_and_one_below_sharpens() -> None:
    logits = np.log(np.array([[1, 4, 16]], np.float32))
    np.testing.assert_allclose(softmax(logits, 2.0), [[1 / 7, 2 / 7, 4 / 7]], rtol=1e-6)
    np.testing.assert_allclose(softmax(logits, 0.5), [[1 / 273, 16 / 273, 256 / 273]], rtol=1e-6)
    assert np.array_equal(softmax(logits, 1.0), softmax(logits))


def test_an_exponent_scales_each_row_by_its_own_spread() -> None:
    logits = np.array([[7.0, 1.0, 1.0], [0.0, 13.0, 2.0], [0.2, 0.0, 0.1], [0.0, 0.0, 0.0]], np.float32)
    spreads = np.array([4.0, 8.0, 1.0, 1.0])  # the last two are below the limit
    for exponent in (0.5, -0.5):
        expected = softmax((logits / (1.5 * spreads[:, None] ** exponent)).astype(np.float32))
        np.testing.assert_allclose(softmax(logits, 1.5, exponent), expected, rtol=1e-5)
    sharp = softmax(logits, 1.5 / 4**0.5, 0.0)[0].max()
    assert softmax(logits, 1.5, -0.5)[0].max() == pytest.approx(sharp)


def test_the_cosine_is_that_with_the_nearest_class() -> None:
    rng = np.random.default_rng(0)
    directions, mean = rng.normal(size=(5, 7)), rng.normal(size=7)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    features = rng.normal(size=(30, 7)).astype(np.float32)
    found = class_mean_cosine(features, mean, directions)
    assert found.dtype == np.float64
    for z, cosine in zip(features, found, strict=True):
        cosines = [(z - mean) @ direction / np.linalg.norm(z - mean) for direction in directions]
        assert cosine == pytest.approx(max(cosines), rel=1e-5)


def test_known_values_of_the_cosine() -> None:
    features = np.array([[5, 0], [3, 4], [-1, -1], [0, 0]], np.float32)
    found = class_mean_cosine(features, np.zeros(2), np.eye(2))
    assert found == pytest.approx([1, 0.8, -np.sqrt(0.5), 0]), "the cosine of the mean is 0"


def test_known_values_of_the_energy() -> None:
    logits = np.array([[np.log(1), np.log(2), np.log(5)], [3e38, 0, -3e38], [-1e4, -1e4, -1e4]], np.float32)
    assert energy(logits) == pytest.approx([np.log(8), 3e38, np.log(3) - 1e4])


@pytest.mark.parametrize(
    ("score", "energy_weight", "cosine_weight"), [(ENERGY, 1, 0), (COSINE, 0, 1), (MIXTURE, 0.25, 3)]
)
def test_a_score_is_a_weighted_sum(score: Score, energy_weight: float, cosine_weight: float) -> None:
    rng = np.random.default_rng(0)
    logits, features = (rng.normal(size=(9, 2)).astype(np.float32) for _ in range(2))
    cosine = class_mean_cosine(features, np.array([0.5, 0]), np.eye(2))
    found = OutOfDistributionScore(spec_of(score)).of_views(logits, features)
    assert found == pytest.approx(energy_weight * energy(logits) + cosine_weight * cosine)


def test_the_energy_needs_no_features_and_the_others_as_many_as_the_class_means_have() -> None:
    assert [OutOfDistributionScore(spec_of(score)).width for score in (ENERGY, COSINE, MIXTURE)] == [None, 2, 2]


def test_the_score_of_an_image_is_the_weighted_mean_over_its_views() -> None:
    logits = np.array([[1, 0], [3, 0], [8, 0]], np.float32)
    statistics = np.array([[50, 0.8]] * 3)
    score = OutOfDistributionScore(spec_of())
    found = score.of_images(logits, logits, statistics, [2, 1])
    assert found == pytest.approx([np.average(energy(logits[:2]), weights=[2, 1]), energy(logits)[2]])
    assert np.array_equal(score.of_images(logits, logits, statistics), energy(logits)), "one view per image"


def test_an_image_without_content_scores_lower_than_all_others() -> None:
    logits = np.full((6, 2), 9, np.float32)
    statistics = np.array([[5, 0.45], [4.9, 0.9], [90, 0.44], [0, 0], [90, 0.9], [0, 0]])
    score = OutOfDistributionScore(spec_of())
    assert np.isfinite(score.of_images(logits, logits, statistics)).tolist() == [True, False, False, False, True, False]
    assert score.fractions(np.array([-np.inf]))[0] == 0
    assert np.isfinite(score.of_images(logits, logits, statistics, [1, 3, 2])).tolist() == [True, False, True], (
        "one view with content is enough"
    )


def test_one_colour_has_no_contrast_and_noise_no_coarseness() -> None:
    rng = np.random.default_rng(0)
    side = 32
    ramp = np.broadcast_to(np.linspace(0, 255, side)[:, None], (side, side, 3))
    noise = rng.integers(0, 256, (side, side, 3))
    (flat, ramps, noises) = pixel_statistics(np.stack([np.full((side, side, 3), 77), ramp, noise]).astype(np.uint8))
    assert flat.tolist() == [0, 0]
    assert ramps == pytest.approx([75.93, 0.99], abs=0.01)
    assert 35 < noises[0] < 50
    assert noises[1] < 0.4


@pytest.mark.parametrize("side", [1, 5, 8, 30, 224])
def test_the_statistics_of_images_of_any_size(side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    contrast, coarseness = pixel_statistics(pixels).T
    used = side // 8 * 8 or side
    part = pixels[:, :used, :used].mean(axis=3)
    assert contrast == pytest.approx(part.std(axis=(1, 2)), rel=1e-4)
    assert ((coarseness >= 0) & (coarseness <= 1 + 1e-6)).all()


def test_the_fraction_is_interpolated_between_the_quantiles() -> None:
    score = OutOfDistributionScore(spec_of(quantiles=(1.0, 2.0, 4.0, 4.0, 8.0)))  # at 0, 1/4, 1/2, 3/4, 1
    scores = np.array([-1, 1, 1.5, 2, 3, 4, 6, 8, 9])
    assert score.fractions(scores) == pytest.approx([0, 0, 1 / 8, 1 / 4, 3 / 8, 3 / 4, 7 / 8, 1, 1])


def test_the_fraction_does_not_decrease_and_is_between_0_and_1() -> None:
    rng = np.random.default_rng(1)
    score = OutOfDistributionScore(spec_of(quantiles=tuple(np.sort(rng.normal(size=101)))))
    shares = score.fractions(np.sort(rng.normal(0, 3, 500)))
    assert (np.diff(shares) >= 0).all()
    assert (shares.min(), shares.max()) == (0, 1)
    assert len(np.unique(shares)) > 200, "it is interpolated between the quantiles"


@pytest.mark.parametrize(
    ("in_distribution", "confidence", "min_confidence", "expected"),
    [
        (0.05, 0.3, 0.0, "accepted"),
        (0.0499, 1.0, 0.0, "uncertain"),
        (0.02, 1.0, 0.0, "uncertain"),
        (0.0199, 1.0, 0.0, "other"),
        (1.0, 0.7, 0.7, "accepted"),
        (1.0, 0.69, 0.7, "uncertain"),
        (0.01, 0.69, 0.7, "other"),
    ],
)
def test_a_low_confidence_makes_an_image_uncertain_and_only_a_low_score_other(
    in_distribution: float, confidence: float, min_confidence: float, expected: Verdict
) -> None:
    assert verdict(in_distribution, confidence, THRESHOLDS, min_confidence) == expected
