import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.calibration import OutOfDistributionScore, pixel_statistics, softmax
from model.card import Calibration, InputSpec, OutOfDistribution
from model.engines.base import Outputs
from model.image import test_transform as transform
from model.training.calibrate import fit_out_of_distribution
from model.training.data import LabeledImages
from model.training.evaluate import Observed, assess, auroc, mistakes, outputs, reliability, score
from model.training.ood import KINDS, others


def logits_of(probabilities: list[list[float]]) -> NDArray[np.float32]:
    return np.log(np.array(probabilities, np.float32)) + np.float32(7)  # a constant has no effect


def test_known_values_of_the_scores() -> None:
    truth = np.array([0, 1, 1, 0])
    scores = score(logits_of([[0.9, 0.1], [0.9, 0.1], [0.38, 0.62], [0.78, 0.22]]), truth)
    assert scores.images == 4
    assert scores.top1 == 0.75
    assert scores.confusion.tolist() == [[2, 0], [1, 1]]
    assert scores.per_class.tolist() == [1.0, 0.5]
    assert scores.nll == pytest.approx(-(math.log(0.9) + math.log(0.1) + math.log(0.62) + math.log(0.78)) / 4, rel=1e-5)
    # Bins: two at 0.9, one of them right; one at 0.62, right; one at 0.78, right.
    assert scores.ece == pytest.approx((2 * 0.4 + 0.38 + 0.22) / 4, rel=1e-5)
    assert scores.bins[13].tolist() == pytest.approx([2, 0.9, 0.5])
    assert scores.bins[:, 0].sum() == 4


def test_a_confident_mistake_has_a_finite_loss() -> None:
    scores = score(np.array([[1000, 0]], np.float32), np.array([1]))
    assert (scores.top1, scores.nll, scores.ece) == (0, 1000, 1)


def test_a_class_without_images_has_no_accuracy() -> None:
    scores = score(logits_of([[0.7, 0.2, 0.1]]), np.array([0]))
    assert scores.per_class[0] == 1
    assert np.isnan(scores.per_class[1:]).all()


def test_a_temperature_changes_the_probabilities_but_not_the_class() -> None:
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(0, 4, (200, 10)).astype(np.float32), rng.integers(0, 10, 200)
    plain, cooler = score(logits, truth), score(logits, truth, 2.5)
    assert (cooler.top1, cooler.confusion.tolist()) == (plain.top1, plain.confusion.tolist())
    np.testing.assert_allclose(cooler.probabilities, softmax(logits, 2.5), atol=1e-6)
    likelihood = np.log(softmax(logits, 2.5).astype(np.float64)[np.arange(200), truth])
    assert cooler.nll == pytest.approx(-likelihood.mean(), rel=1e-5)
    assert plain.nll == pytest.approx(
        -np.log(softmax(logits).astype(np.float64)[np.arange(200), truth]).mean(), rel=1e-5
    )
    assert cooler.ece < plain.ece - 0.1, "random labels: lower confidence is better calibrated"
    powers = score(logits, truth, 2.5, 0.3)
    np.testing.assert_allclose(powers.probabilities, softmax(logits, 2.5, 0.3), atol=1e-6)
    likelihood = np.log(softmax(logits, 2.5, 0.3).astype(np.float64)[np.arange(200), truth])
    assert powers.nll == pytest.approx(-likelihood.mean(), rel=1e-5)


@pytest.mark.parametrize("values", [3, 20, 10**9], ids=["many ties", "some ties", "no ties"])
def test_auroc_equals_a_count_of_all_pairs(values: int) -> None:
    rng = np.random.default_rng(0)
    inside = rng.integers(0, values, 60).astype(np.float64)
    outside = (rng.integers(0, values, 41) * 9 // 10).astype(np.float64)
    wins = sum((a > b) + 0.5 * (a == b) for a in inside for b in outside)
    assert auroc(inside, outside) == pytest.approx(wins / (60 * 41), abs=1e-12)


def test_auroc_of_separate_and_of_equal_scores() -> None:
    low, high = np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])
    assert (auroc(high, low), auroc(low, high), auroc(low, low)) == (1, 0, 0.5)


HEAD = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 1.0]], np.float32)
SPEC = InputSpec(resize=48, crop=40, interpolation="bicubic", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Recorder:
    """An engine whose features are the mean colours. It keeps its inputs in `seen`."""

    name, device, precision = "recorder", "cpu", "float32"

    def __init__(self, preferred_batch: int = 50) -> None:
        self.preferred_batch = preferred_batch
        self.seen: list[NDArray[np.uint8]] = []

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        self.seen.append(pixels)
        means: NDArray[np.float32] = pixels.mean((1, 2)).astype(np.float32) / 50
        return Outputs(means @ HEAD.T, means, None)


def random_images(count: int, side: int = 32) -> LabeledImages:
    """Images of random brightness and colour."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, rng.integers(20, 257, (count, 1, 1, 3)), (count, side, side, 3)).astype(np.uint8)
    return LabeledImages(torch.from_numpy(pixels), torch.from_numpy(rng.integers(0, 3, count)))


def test_images_are_preprocessed_as_in_the_service() -> None:
    pixels = random_images(7).pixels.numpy()
    expected = np.stack([transform(Image.fromarray(image), SPEC) for image in pixels])
    engine, progress = Recorder(3), list[int]()
    out = outputs(engine, SPEC, pixels, progress=progress.append)
    assert progress == [3, 3, 1]
    assert np.array_equal(np.concatenate(engine.seen), expected)
    np.testing.assert_allclose(out.features, expected.mean((1, 2)) / 50, rtol=1e-5)
    np.testing.assert_allclose(out.logits, out.features @ HEAD.T, rtol=1e-5)
    np.testing.assert_allclose(out.statistics, pixel_statistics(expected), rtol=1e-5)


def test_the_card_has_the_bins_that_contain_images() -> None:
    truth = np.array([0, 1, 1, 0])
    scores = score(logits_of([[0.9, 0.1], [0.92, 0.08], [0.38, 0.62], [0.78, 0.22]]), truth)
    low, middle, high = reliability(scores)
    assert [low.confidence, low.accuracy, low.pictures] == pytest.approx([0.62, 1.0, 1], abs=1e-6)
    assert [middle.confidence, middle.accuracy, middle.pictures] == pytest.approx([0.78, 1.0, 1], abs=1e-6)
    assert [high.confidence, high.accuracy, high.pictures] == pytest.approx([0.91, 0.5, 2], abs=1e-6)
    gaps = sum(part.pictures * abs(part.confidence - part.accuracy) for part in (low, middle, high)) / 4
    assert gaps == pytest.approx(scores.ece, abs=1e-6)


def test_the_mistakes_with_the_highest_confidence_come_first() -> None:
    logits = np.array([[3, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 3], [0, 1, 0], [9, 0, 0]], np.float32)
    scores = score(logits, np.array([0, 1, 1, 2, 2, 2]))
    found = mistakes(scores, ["cat", "dog", "owl"])
    assert [(mistake.image, mistake.label, mistake.predicted) for mistake in found] == [
        (5, "owl", "cat"),
        (1, "dog", "cat"),
        (4, "owl", "dog"),
    ]
    assert [mistake.probability for mistake in found] == pytest.approx(scores.probabilities.max(1)[[5, 1, 4]], abs=1e-6)
    assert mistakes(scores, ["cat", "dog", "owl"], count=2) == found[:2]


def fitted(out: Observed, images: LabeledImages, count: int) -> OutOfDistribution:
    """The constants for the first images."""
    logits, features, statistics = out.logits[:count, None], out.features[:count, None], out.statistics[:count, None]
    return fit_out_of_distribution(logits, features, statistics, images.labels.numpy()[:count], outliers=False)


def test_an_assessment_includes_the_test_images_and_each_other_kind() -> None:
    test = random_images(50)
    calibration = Calibration(temperature=1.8, exponent=0.4, views=1, pictures=9)
    out = outputs(Recorder(), SPEC, test.pixels.numpy())
    spec = fitted(out, test, 25)
    progress = list[tuple[int, int]]()
    assessment = assess(
        Recorder(), SPEC, calibration, spec, test, progress=lambda done, total: progress.append((done, total))
    )
    truth = test.labels.numpy()
    for found, constants in ((assessment.scores, (1.8, 0.4)), (assessment.uncalibrated, (1.0, 0.0))):
        expected = score(out.logits, truth, *constants)
        assert (found.top1, found.nll, found.ece) == (expected.top1, expected.nll, expected.ece)
        assert np.array_equal(found.truth, truth)
    assert assessment.scores.nll != assessment.uncalibrated.nll
    ood_score, thresholds = OutOfDistributionScore(spec), spec.thresholds
    inside = ood_score.of_images(*out)
    assert list(assessment.auroc) == list(KINDS)
    assert list(assessment.accepted) == ["test", *KINDS]
    assert list(assessment.other) == ["test", *KINDS]
    assert assessment.accepted["test"] == (ood_score.fractions(inside) >= thresholds.accepted).mean()
    assert assessment.other["test"] == (ood_score.fractions(inside) < thresholds.uncertain).mean()
    for kind, made in others(test.pixels.numpy()).items():
        scores = ood_score.of_images(*outputs(Recorder(), SPEC, made))
        wins = (inside[:, None] > scores).mean() + 0.5 * (inside[:, None] == scores).mean()
        assert assessment.auroc[kind] == pytest.approx(wins)
        assert assessment.accepted[kind] == (ood_score.fractions(scores) >= thresholds.accepted).mean()
        assert assessment.other[kind] == (ood_score.fractions(scores) < thresholds.uncertain).mean()
    assert progress == [(50, 200), (100, 200), (150, 200), (200, 200)]


def test_there_are_at_most_2000_images_of_each_other_kind() -> None:
    test = random_images(2010, side=4)
    tiny = InputSpec(resize=4, crop=4, interpolation="bilinear", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    spec = fitted(outputs(Recorder(), tiny, test.pixels[:100].numpy()), test, 100)
    engine = Recorder()
    assess(engine, tiny, Calibration(temperature=1.0, views=1, pictures=0), spec, test)
    assert sum(map(len, engine.seen)) == 2010 + 3 * 2000


def test_the_scores_of_a_class_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth = np.concatenate([rng.integers(0, 4, 60), np.full(200, 4)])
    found = score(rng.normal(size=(260, 6)).astype(np.float32) + 2 * np.eye(6, dtype=np.float32)[truth], truth)
    predicted = found.probabilities.argmax(axis=1)
    assert found.macro == pytest.approx(metrics.recall_score(truth, predicted, labels=range(5), average="macro"))
    assert found.f1[:5] == pytest.approx(metrics.f1_score(truth, predicted, labels=range(5), average=None))
    assert found.per_class[:5] == pytest.approx(metrics.recall_score(truth, predicted, labels=range(5), average=None))
    assert np.isnan([found.f1[5], found.per_class[5]]).all()
    assert abs(found.macro - found.top1) > 0.001
