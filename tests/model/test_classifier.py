import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import model
from model.calibration import OutOfDistributionScore, Verdict, softmax
from model.card import Thresholds
from model.classifier import Classifier, Prediction, self_test_pixels
from model.engines.base import Outputs
from model.errors import CardError, EngineError, IntegrityError
from tests.conftest import maps_of


class Fixed:
    """An engine that always returns the same outputs. It keeps its inputs in `seen`."""

    name, device, precision, preferred_batch = "fixed", "cpu", "float32", 32

    def __init__(self, outputs: Outputs) -> None:
        self.outputs = outputs
        self.seen: list[NDArray[np.uint8]] = []

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        self.seen.append(pixels)
        return self.outputs


def classifier_with(
    tiny_classifier: Classifier, logits: object, features: object = None, maps: object = None
) -> Classifier:
    """A classifier whose engine returns these outputs. The default is features of zero and equal cells in the maps."""
    values = np.asarray(logits, np.float32)
    zeros = np.zeros((len(values), 64))
    outputs = Outputs(
        values,
        np.asarray(zeros if features is None else features, np.float32),
        np.asarray(level(values) if maps is None else maps, np.float32),
    )
    return Classifier(tiny_classifier.card, Fixed(outputs))


def level(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps of 2 x 2 equal cells that sum to the logits."""
    return np.tile(logits[..., None, None] / 4, (2, 2))


ONE = [np.zeros((1, 32, 32, 3), np.uint8)]


def prediction_of(probabilities: list[float], in_distribution: float = 0.5) -> Prediction:
    values = np.array(probabilities, np.float32)
    labels = tuple("abcd"[: len(values)])
    thresholds = Thresholds(accepted=0.05, uncertain=0.02)
    return Prediction(labels, values, 0.0, in_distribution, thresholds, logits=np.log(values)[None], maps=None)


def test_the_ranking_is_by_probability_and_ties_keep_the_order_of_the_labels() -> None:
    prediction = prediction_of([0.2, 0.3, 0.2, 0.3])
    assert [(one.label, one.index) for one in prediction.top_k(4)] == [("b", 1), ("d", 3), ("a", 0), ("c", 2)]
    assert [one.label for one in prediction.top_k(2)] == ["b", "d"]
    assert prediction.top_k(1)[0].probability == pytest.approx(0.3)
    assert type(prediction.top_k(1)[0].probability) is float  # plain JSON


@pytest.mark.parametrize(
    ("in_distribution", "min_confidence", "verdict"),
    [
        (0.5, 0.0, "accepted"),
        (0.05, 0.0, "accepted"),  # the threshold itself
        (0.049, 0.0, "uncertain"),
        (0.02, 0.0, "uncertain"),  # the threshold itself
        (0.019, 0.0, "other"),
        (0.0, 0.0, "other"),
        (0.5, 0.75, "accepted"),  # the probability itself
        (0.5, 0.76, "uncertain"),
        (0.049, 0.5, "uncertain"),
        (0.05, 0.76, "uncertain"),
        (0.019, 0.76, "other"),
    ],
)
def test_the_verdict_is_by_the_score_and_the_confidence(
    in_distribution: float, min_confidence: float, verdict: Verdict
) -> None:
    prediction = prediction_of([0.25, 0.75], in_distribution)
    assert prediction.verdict(min_confidence) == verdict
    assert prediction.accepted(min_confidence) is (verdict == "accepted")
    assert prediction.accepted() is (in_distribution >= 0.05)


def test_each_image_has_its_own_prediction(tiny_classifier: Classifier) -> None:
    logits = np.zeros((2, 10))
    logits[0, 3], logits[1, 8] = 5, 5
    first, second = classifier_with(tiny_classifier, logits).classify(ONE * 2)
    assert (first.top_k(1)[0].label, second.top_k(1)[0].label) == ("cat", "ship")
    assert first.probabilities.sum() == pytest.approx(1)
    assert first.thresholds == tiny_classifier.card.out_of_distribution.thresholds


class Numbered(Fixed):
    """An engine whose outputs for a view are the row with the number in its first value."""

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        super().run(pixels)
        rows = pixels[:, 0, 0, 0]
        logits, features, maps = self.outputs
        return Outputs(logits[rows], features[rows], None if maps is None else maps[rows])


@pytest.mark.parametrize(
    ("counts", "confident"),
    [
        ((1, 3, 2), ()),
        ((1, 3, 2), (1,)),
        ((1,), ()),
        ((4,), ()),
        ((5,), (0,)),
        ((2, 1, 1, 1, 5), ()),
        ((5, 5, 1, 4, 5), (0, 2, 4)),
        ((1, 1, 1), (1,)),
    ],
)
@pytest.mark.parametrize("has_maps", [True, False])
def test_a_prediction_is_the_weighted_mean_over_the_views_of_the_image(
    tiny_classifier: Classifier, counts: tuple[int, ...], confident: tuple[int, ...], has_maps: bool
) -> None:
    rng = np.random.default_rng(0)
    total, starts = sum(counts), np.cumsum([0, *counts])
    logits = rng.normal(0, 3, (total, 10)).astype(np.float32)
    for image in confident:
        logits[starts[image] : starts[image + 1], 4] += 400
    features = rng.normal(0, 1, (total, 64)).astype(np.float32)
    maps = rng.normal(0, 1, (total, 10, 4, 5)).astype(np.float32)
    card = tiny_classifier.card
    calibration = card.calibration.model_copy(update={"temperature": 1.7, "exponent": 0.4})
    spec = card.out_of_distribution
    by_view = OutOfDistributionScore(spec).of_views(logits, features)
    spec = spec.model_copy(update={"quantiles": np.quantile(by_view, [0, 0.3, 1]).tolist(), "least_coarseness": 0.0})
    card = card.model_copy(update={"calibration": calibration, "out_of_distribution": spec})
    engine = Numbered(Outputs(logits, features, maps if has_maps else None))
    pixels = rng.integers(0, 256, (total, 32, 32, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(total)
    predictions = Classifier(card, engine).classify(np.split(pixels, starts[1:-1]))
    assert len(predictions) == len(counts)

    rows = [list(range(start, start + count)) for start, count in zip(starts, counts, strict=False)]
    first = [row for one in rows for row in one[:2]]
    further = [row for number, one in enumerate(rows) if number not in confident for row in one[2:]]
    passes = [first, further] if further else [first]
    assert [seen[:, 0, 0, 0].tolist() for seen in engine.seen] == passes, "first views, then those of unsure images"
    for number, prediction in enumerate(predictions):
        own = rows[number][:2] if number in confident else rows[number]
        assert prediction.views == len(own)
        weights = {1: [1], 2: [2, 1], 3: [1, 2, 1], 4: [1, 2, 1, 1], 5: [1, 2, 1, 1, 1]}[len(own)]
        product = np.exp(np.average(np.log(softmax(logits[own], 1.7, 0.4) + 1e-30), axis=0, weights=weights))
        np.testing.assert_allclose(prediction.probabilities, product / product.sum(), atol=1e-6)
        assert prediction.probabilities.dtype == prediction.mean_logits.dtype == np.float32
        np.testing.assert_allclose(prediction.mean_logits, np.average(logits[own], axis=0, weights=weights), rtol=1e-5)
        score = np.average(by_view[own], weights=weights, keepdims=True)
        assert prediction.score == pytest.approx(score[0])
        assert prediction.in_distribution == pytest.approx(OutOfDistributionScore(spec).fractions(score)[0])
        assert type(prediction.in_distribution) is float  # plain JSON
        np.testing.assert_array_equal(prediction.logits, logits[own])
        if has_maps:
            np.testing.assert_array_equal(prediction.maps, maps[own])
        else:
            assert prediction.maps is None


@pytest.mark.parametrize(("probability", "views", "found"), [(0.9795, 3, 0.913), (0.9805, 2, 0.9805)])
def test_further_views_are_run_below_a_probability(
    tiny_classifier: Classifier, probability: float, views: int, found: float
) -> None:
    card = tiny_classifier.card
    calibration = card.calibration.model_copy(update={"temperature": 1.0, "exponent": 0.0})
    logits = np.zeros((3, 10), np.float32)
    logits[:2, 0] = np.log(9 * probability / (1 - probability))
    engine = Numbered(Outputs(logits, np.zeros((3, 64), np.float32), None))
    pixels = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3)
    (prediction,) = Classifier(card.model_copy(update={"calibration": calibration}), engine).classify([pixels])
    assert prediction.views == views
    assert prediction.probabilities[0] == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize("shape", [(2, 10), (0, 10), (1, 9), (10,)])
def test_logits_of_another_shape_are_an_engine_error(tiny_classifier: Classifier, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"logits of shape .* for 1 views"):
        classifier_with(tiny_classifier, np.zeros(shape)).classify(ONE)


def test_features_of_another_shape_are_an_engine_error(tiny_classifier: Classifier) -> None:
    with pytest.raises(EngineError, match=r"features of shape \(2, 64\) and maps .* for 1 views"):
        classifier_with(tiny_classifier, np.zeros((1, 10)), np.zeros((2, 64))).classify(ONE)


@pytest.mark.parametrize("shape", [(2, 10, 2, 2), (1, 9, 2, 2), (1, 10, 2), (1, 10), (1, 10, 2, 2, 1)])
def test_maps_of_another_shape_are_an_engine_error(tiny_classifier: Classifier, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"maps of shape .* for 1 views"):
        classifier_with(tiny_classifier, np.zeros((1, 10)), maps=np.zeros(shape)).classify(ONE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["logits", "features", "maps"])
def test_values_that_are_not_finite_are_an_engine_error(tiny_classifier: Classifier, which: str, value: float) -> None:
    given = {"logits": np.zeros((1, 10)), "features": np.zeros((1, 64)), "maps": np.zeros((1, 10, 2, 2))}
    given[which][0, 4] = value
    with pytest.raises(EngineError, match="not finite"):
        classifier_with(tiny_classifier, **given).classify(ONE)


@pytest.fixture
def right(tiny_classifier: Classifier) -> Outputs:
    """Outputs that pass the self-test: the logits of the card with their features and maps."""
    test = tiny_classifier.card.self_test
    _, features, maps = tiny_classifier.engine.run(self_test_pixels(test.seed, len(test.logits), 32))
    return Outputs(np.asarray(test.logits, np.float32), features, maps)


def test_the_self_test_allows_differences_up_to_its_tolerance(tiny_classifier: Classifier, right: Outputs) -> None:
    test = tiny_classifier.card.self_test
    expected, features, _ = right
    allowed = test.tolerance * np.abs(expected).max()
    almost = expected.copy()
    almost[-1, almost[-1].argmin()] -= 0.9 * allowed
    classifier_with(tiny_classifier, almost, features).self_test()
    wrong = expected.copy()
    wrong[-1, -1] -= 1.1 * allowed
    for values, what in ((wrong, "logits"), (np.full_like(expected, np.nan), "logits"), (expected[:-1], "shapes")):
        with pytest.raises(IntegrityError, match=f"self-test of tiny failed in its {what} on fixed"):
            classifier_with(tiny_classifier, values, features).self_test()


def test_the_self_test_checks_the_features(tiny_classifier: Classifier, right: Outputs) -> None:
    logits, features, _ = right
    for values in (features[:, :-1], features[:-1], features[..., None], features.ravel()):
        with pytest.raises(IntegrityError, match="self-test of tiny failed in its shapes on fixed"):
            classifier_with(tiny_classifier, logits, values).self_test()
    for values in (features[:, ::-1], np.full_like(features, np.nan)):
        with pytest.raises(IntegrityError, match=r"failed in its (scores|in_distribution) on fixed"):
            classifier_with(tiny_classifier, logits, values).self_test()


def test_the_self_test_checks_the_maps(tiny_classifier: Classifier, right: Outputs) -> None:
    logits, features, maps = right.logits, right.features, maps_of(right)
    classifier_with(tiny_classifier, logits, features, maps).self_test()
    for values in (maps[:-1], maps[:, :-1], maps[..., 0]):
        with pytest.raises(IntegrityError, match="self-test of tiny failed in its shapes on fixed"):
            classifier_with(tiny_classifier, logits, features, values).self_test()
    foreign = 100 * np.random.default_rng(0).normal(size=maps.shape)
    for values in (foreign.astype(np.float32), np.full_like(maps, np.nan)):
        with pytest.raises(IntegrityError, match="failed in its maps on fixed"):
            classifier_with(tiny_classifier, logits, features, values).self_test()


def test_a_network_without_maps_passes_the_self_test_and_has_none_in_its_predictions(
    tiny_classifier: Classifier, right: Outputs
) -> None:
    classifier = Classifier(tiny_classifier.card, Fixed(right._replace(maps=None)))
    classifier.self_test()
    predictions = classifier.classify(ONE * len(right.logits))
    assert [prediction.maps for prediction in predictions] == [None] * len(right.logits)
    np.testing.assert_array_equal(np.concatenate([prediction.logits for prediction in predictions]), right.logits)


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def with_new_hash(folder: Path) -> Path:
    """Put the hash of changed weights on the card."""
    card = json.loads((folder / "card.json").read_text())
    card["files"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_other_weights_with_the_right_hash_fail_the_self_test(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["layer2.0.conv1.weight"] = -state["layer2.0.conv1.weight"]
    save_file(state, copy / "model.safetensors")
    with pytest.raises(IntegrityError, match="self-test of tiny failed in its logits on torch"):
        model.load(with_new_hash(copy))


def test_another_order_of_channels_fails_the_self_test(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["conv1.weight"] = state["conv1.weight"].flip(1).contiguous()
    save_file(state, copy / "model.safetensors")
    with pytest.raises(IntegrityError, match="self-test"):
        model.load(with_new_hash(copy))


def altered(folder: Path, where: str, alter: Callable[[Any], Any]) -> Path:
    card = json.loads((folder / "card.json").read_text())
    *path, last = where.split(".")
    part = reduce(getitem, path, card)
    part[last] = alter(part[last])
    (folder / "card.json").write_text(json.dumps(card))
    return folder


# The probabilities of a random network hardly differ, so the changes have to be large.
@pytest.mark.parametrize(
    ("where", "alter", "output"),
    [
        ("calibration.temperature", lambda value: value / 100, "probabilities"),
        ("out_of_distribution.score.energy_weight", lambda value: 2 * value, "scores"),
        ("out_of_distribution.score.cosine_weight", lambda value: 9 * value, "scores"),
        (
            "out_of_distribution.score.class_directions",
            lambda rows: [row[::-1] for row in rows],
            "(scores|in_distribution)",
        ),
        ("out_of_distribution.quantiles", lambda values: [value - 10 for value in values], "in_distribution"),
        ("self_test.scores", lambda values: [1.2 * value for value in values], "scores"),
        ("self_test.in_distribution", lambda values: [abs(value - 0.5) for value in values], "in_distribution"),
    ],
)
def test_a_changed_card_fails_the_self_test(copy: Path, where: str, alter: Callable[[Any], Any], output: str) -> None:
    model.load(copy, device="cpu")
    with pytest.raises(IntegrityError, match=f"self-test of tiny failed in its {output} on torch"):
        model.load(altered(copy, where, alter), device="cpu")


@pytest.mark.parametrize("fault", ["lacks a tensor", "has another width", "is no safetensors file"])
def test_weights_of_another_network_are_an_error(copy: Path, fault: str) -> None:
    weights = copy / "model.safetensors"
    state = load_file(weights)
    if fault == "lacks a tensor":
        del state["fc.bias"]
    else:
        state["fc.bias"] = torch.zeros(11)
    save_file(state, weights)
    if fault == "is no safetensors file":
        weights.write_bytes(b"\x80\x05N.")  # a pickle
    with pytest.raises(IntegrityError, match=r"model\.safetensors does not hold the weights of resnet18"):
        model.load(with_new_hash(copy))


def test_an_unknown_network_is_a_card_error(copy: Path) -> None:
    card = json.loads((copy / "card.json").read_text())
    card["architecture"]["name"] = "resnet19"
    (copy / "card.json").write_text(json.dumps(card))
    with pytest.raises(CardError, match=r"card\.json: architecture: there is no network 'resnet19'"):
        model.load(copy)


@pytest.mark.parametrize(
    ("side", "digest"),
    [
        (32, "a878885062c2f7b3ad933cbf0f6e8ffe3defb3cdfb45a5f0fbfac9ef495cc2e2"),
        (224, "a51bed4c61937cdee578e4d8dd1c767dcfd0d6ba9147619c18181920c9f44f3b"),
    ],
)
def test_the_pixels_of_the_self_test_never_change(side: int, digest: str) -> None:
    # Otherwise all existing bundles would fail their self-test.
    pixels = self_test_pixels(10, 4, side)
    assert pixels.shape == (4, side, side, 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest


def test_the_example_of_the_docstring_works(tiny_bundle: Path, cat_jpeg: bytes) -> None:
    classifier = model.load(str(tiny_bundle))
    image = model.preprocess(cat_jpeg, classifier.card.input, max_pixels=50_000_000)
    (prediction,) = classifier.classify([image.pixels])
    assert len(prediction.top_k(3)) == 3
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert 0 <= prediction.in_distribution <= 1
    assert isinstance(prediction.accepted(), bool)


def test_an_image_in_several_views_has_one_prediction(tiny_classifier: Classifier, cat_jpeg: bytes) -> None:
    image = model.preprocess(cat_jpeg, tiny_classifier.card.input, max_pixels=50_000_000, views=model.MAX_VIEWS)
    together, alone = tiny_classifier.classify([image.pixels, image.pixels[:1]])
    each = tiny_classifier.classify(list(image.pixels[:, None]))
    assert len(each) == model.MAX_VIEWS
    mean = np.mean([prediction.probabilities for prediction in each], axis=0)
    np.testing.assert_allclose(together.probabilities, mean, atol=0.01)
    np.testing.assert_allclose(alone.probabilities, each[0].probabilities, atol=0.01)


def test_the_serving_modules_do_not_import_torch() -> None:
    script = (
        "import sys, model, model.bundle, model.calibration, model.card, model.classifier\n"
        "import model.engines.base, model.image\n"
        "print([name for name in ('torch', 'torchvision', 'model.nets', 'model.training') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
