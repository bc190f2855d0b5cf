import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

import model
from model.classifier import Classifier, Prediction, self_test_pixels, softmax
from model.errors import CardError, EngineError, IntegrityError


class Fixed:
    """An engine that always gives the same logits."""

    name, device, precision = "fixed", "cpu", "float32"

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self.answer = logits

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.answer


def classifier_with(tiny_classifier: Classifier, logits: object) -> Classifier:
    return Classifier(tiny_classifier.card, Fixed(np.asarray(logits, np.float32)))


PIXELS = np.zeros((1, 32, 32, 3), np.uint8)


def test_the_ranking_is_by_probability_and_ties_keep_the_order_of_the_labels() -> None:
    prediction = Prediction(("a", "b", "c", "d"), np.array([0.2, 0.3, 0.2, 0.3], np.float32))
    assert [(one.label, one.index) for one in prediction.top_k(4)] == [("b", 1), ("d", 3), ("a", 0), ("c", 2)]
    assert [one.label for one in prediction.top_k(2)] == ["b", "d"]
    assert prediction.top_k(1)[0].probability == pytest.approx(0.3)
    assert type(prediction.top_k(1)[0].probability) is float  # plain JSON


def test_softmax_by_hand_and_at_the_extremes() -> None:
    found = softmax(np.array([[np.log(1), np.log(2), np.log(5)], [3e38, 0, -3e38]], np.float32))
    np.testing.assert_allclose(found, np.array([[1 / 8, 2 / 8, 5 / 8], [1, 0, 0]]), rtol=1e-6)
    assert found.dtype == np.float32


def test_each_picture_gets_its_own_prediction(tiny_classifier: Classifier) -> None:
    logits = np.zeros((2, 10))
    logits[0, 3], logits[1, 8] = 5, 5
    first, second = classifier_with(tiny_classifier, logits).classify(np.zeros((2, 32, 32, 3), np.uint8))
    assert (first.top_k(1)[0].label, second.top_k(1)[0].label) == ("cat", "ship")
    assert first.probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("shape", [(2, 10), (0, 10), (1, 9), (10,)])
def test_logits_of_another_shape_are_the_engines_fault(tiny_classifier: Classifier, shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match=r"shape .* for 1 pictures"):
        classifier_with(tiny_classifier, np.zeros(shape)).classify(PIXELS)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_the_engines_fault(tiny_classifier: Classifier, value: float) -> None:
    logits = np.zeros((1, 10))
    logits[0, 4] = value
    with pytest.raises(EngineError, match="not finite"):
        classifier_with(tiny_classifier, logits).classify(PIXELS)


def test_the_self_test_allows_rounding_and_no_more(tiny_classifier: Classifier) -> None:
    test = tiny_classifier.card.self_test
    expected = np.asarray(test.logits, np.float32)
    allowed = test.tolerance * np.abs(expected).max()
    classifier_with(tiny_classifier, expected + 0.9 * allowed).self_test()
    wrong = expected.copy()
    wrong[-1, -1] -= 1.1 * allowed
    for answer in (wrong, np.full_like(expected, np.nan), expected[:-1]):
        with pytest.raises(IntegrityError, match="self-test of tiny failed on fixed"):
            classifier_with(tiny_classifier, answer).self_test()


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A bundle to tamper with."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def hashed_anew(folder: Path) -> Path:
    """As somebody would leave it who altered the weights and put the hash on the card right."""
    card = json.loads((folder / "card.json").read_text())
    card["files"]["model.safetensors"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_other_weights_with_a_right_hash_fail_the_self_test(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["layer2.0.conv1.weight"] = -state["layer2.0.conv1.weight"]
    save_file(state, copy / "model.safetensors")
    with pytest.raises(IntegrityError, match="self-test of tiny failed on torch"):
        model.load(hashed_anew(copy))


def test_another_order_of_channels_fails_the_self_test(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["conv1.weight"] = state["conv1.weight"].flip(1).contiguous()
    save_file(state, copy / "model.safetensors")
    with pytest.raises(IntegrityError, match="self-test"):
        model.load(hashed_anew(copy))


@pytest.mark.parametrize("fault", ["lacks a tensor", "has another width", "is no safetensors file"])
def test_weights_of_another_network_are_named(copy: Path, fault: str) -> None:
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
        model.load(hashed_anew(copy))


def test_a_card_that_names_no_network_is_a_card_error(copy: Path) -> None:
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
    # Else every bundle that was ever written would fail its self-test.
    pixels = self_test_pixels(10, 4, side)
    assert pixels.shape == (4, side, side, 3)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest


def test_the_documented_way_of_use_works(tiny_bundle: Path, cat_jpeg: bytes) -> None:
    classifier = model.load(str(tiny_bundle))
    picture = model.prepare(cat_jpeg, classifier.card.input, max_pixels=50_000_000)
    (prediction,) = classifier.classify(picture.pixels[None])
    assert len(prediction.top_k(3)) == 3
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_the_serving_half_needs_no_torch() -> None:
    script = (
        "import sys, model, model.bundle, model.card, model.classifier, model.engines.base, model.image\n"
        "print([name for name in ('torch', 'torchvision', 'model.nets', 'model.training') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
