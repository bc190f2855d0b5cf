import numpy as np
import pytest
from numpy.typing import NDArray

from model.calibration import class_mean_cosine, in_distribution, softmax
from model.card import OutOfDistribution


def spec_of(
    directions: NDArray[np.float64] | None = None,
    mean: NDArray[np.float64] | None = None,
    quantiles: tuple[float, ...] = (0.0, 1.0),
) -> OutOfDistribution:
    directions = np.eye(2) if directions is None else directions
    return OutOfDistribution(
        method="class-mean-cosine",
        feature_mean=[0.0] * directions.shape[1] if mean is None else mean.tolist(),
        class_directions=directions.tolist(),
        quantiles=list(quantiles),
        threshold=0.05,
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


def test_the_score_is_the_cosine_with_the_nearest_class() -> None:
    rng = np.random.default_rng(0)
    directions, mean = rng.normal(size=(5, 7)), rng.normal(size=7)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    features = rng.normal(size=(30, 7)).astype(np.float32)
    found = class_mean_cosine(features, spec_of(directions, mean))
    assert found.dtype == np.float64
    for z, score in zip(features, found, strict=True):
        cosines = [(z - mean) @ direction / np.linalg.norm(z - mean) for direction in directions]
        assert score == pytest.approx(max(cosines), rel=1e-5)


def test_known_values_of_the_score() -> None:
    features = np.array([[5, 0], [3, 4], [-1, -1], [0, 0]], np.float32)
    assert class_mean_cosine(features, spec_of()) == pytest.approx([1, 0.8, -np.sqrt(0.5), 0]), (
        "the score of the mean is 0"
    )


def test_the_fraction_is_interpolated_between_the_quantiles() -> None:
    spec = spec_of(quantiles=(1.0, 2.0, 4.0, 4.0, 8.0))  # at 0, 1/4, 1/2, 3/4, 1
    scores = np.array([-1, 1, 1.5, 2, 3, 4, 6, 8, 9])
    assert in_distribution(scores, spec) == pytest.approx([0, 0, 1 / 8, 1 / 4, 3 / 8, 3 / 4, 7 / 8, 1, 1])


def test_the_fraction_does_not_decrease_and_is_between_0_and_1() -> None:
    rng = np.random.default_rng(1)
    spec = spec_of(quantiles=tuple(np.sort(rng.normal(size=101))))
    shares = in_distribution(np.sort(rng.normal(0, 3, 500)), spec)
    assert (np.diff(shares) >= 0).all()
    assert (shares.min(), shares.max()) == (0, 1)
    assert len(np.unique(shares)) > 200, "it is interpolated between the quantiles"
