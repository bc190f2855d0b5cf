import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from model.card import _DECISIVE, REVISION, ModelCard, read_card
from model.errors import CardError

DELETED = object()
NAN = float("nan")


def directions(classes: int, row: int = 0, column: int = 0, value: float = 1.0, *, size: int = 64) -> list[list[float]]:
    """Valid class_directions, except for one value."""
    found = [[float(i == j) for j in range(size)] for i in range(classes)]
    found[row][column] = value
    return found


def wrong_throughout(classes: int) -> list[list[int]]:
    """The confusion of 40 images, all wrong."""
    found = [[0] * classes for _ in range(classes)]
    found[0][1] = 40
    return found


def bin_of(confidence: float, accuracy: float, pictures: int = 40) -> dict[str, float]:
    return {"confidence": confidence, "accuracy": accuracy, "pictures": pictures}


def mistake_of(label: str, predicted: str, image: int = 7) -> dict[str, Any]:
    return {"image": image, "label": label, "predicted": predicted, "probability": 0.9}


@pytest.fixture
def card(tiny_bundle: Path) -> dict[str, Any]:
    """A valid card, as plain JSON."""
    found: dict[str, Any] = json.loads((tiny_bundle / "card.json").read_text())
    return found


def altered(card: dict[str, Any], where: str, value: object) -> dict[str, Any]:
    *path, last = where.split(".")
    part = card
    for key in path:
        part = part[key]
    if value is DELETED:
        del part[last]
    else:
        part[last] = value
    return card


def read(card: object, folder: Path) -> ModelCard:
    path = folder / "card.json"
    path.write_text(json.dumps(card))
    return read_card(path)


def test_a_card_is_the_same_after_reading_it(card: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(read(card, tmp_path).model_dump_json()) == card


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("colour", "red", "colour: Extra inputs"),
        ("input.gamma", 2.2, "input.gamma: Extra inputs"),
        ("name", DELETED, "name: Field required"),
        ("metrics.ece", DELETED, "metrics.ece: Field required"),
        ("input.resize", "32", "input.resize: Input should be a valid integer"),
        ("input.crop", 32.5, "input.crop: "),
        ("input.resize", 0, "input.resize: "),
        ("input.interpolation", "nearest", "input.interpolation: "),
        ("input.mean", [0.5, 0.5], "input.mean"),
        ("input.std", [0.2, 0.0, 0.2], "input.std.1: "),
        ("input.mean", [0.5, NAN, 0.5], "input.mean.1: "),
        ("metrics.top1", NAN, "metrics.top1: "),
        ("metrics.top1", 1.01, "metrics.top1: "),
        ("training.seconds", float("inf"), "training.seconds: "),
        ("format_version", 3, "format_version: Input should be 5"),
        ("name", "../elsewhere", "name: "),
        ("input.crop", 33, r"input: .*crop \(33\) is larger than resize \(32\)"),
        ("labels", ["cat"] * 10, "labels are not unique"),
        ("labels", ["cat", "dog"], "num_classes is not the number of labels"),
        ("architecture.arguments.num_classes", 9, "num_classes is not the number of labels"),
        ("self_test.logits", [[0.0] * 9], "self_test.logits or probabilities does not have one column per label"),
        (
            "self_test.probabilities",
            [[0.1] * 9],
            "self_test.logits or probabilities does not have one column per label",
        ),
        ("self_test.logits", [], "self_test.logits: "),
        ("self_test.tolerance", 1.0, "self_test.tolerance: "),
        ("self_test.scores", DELETED, "self_test.scores: Field required"),
        ("self_test.scores", [1.0], "the lists of self_test do not have the same length"),
        ("self_test.probabilities", [], "the lists of self_test do not have the same length"),
        ("self_test.in_distribution", [0.5] * 5, "the lists of self_test do not have the same length"),
        ("metrics.ece_uncalibrated", DELETED, "metrics.ece_uncalibrated: Field required"),
        ("metrics.confusion", DELETED, "metrics.confusion: Field required"),
        ("metrics.confusion", [[1.5] * 10] * 10, r"metrics.confusion.0.0: Input should be a valid integer"),
        ("metrics.confusion", [[-1] * 10] * 10, r"metrics.confusion.0.0: Input should be greater than or equal to 0"),
        ("metrics.confusion", [[4] * 9] * 10, "metrics: .*confusion is not square"),
        ("metrics.confusion", [[1] * 10] * 10, "metrics: .*the sum of confusion is not the number of pictures"),
        ("metrics.confusion", wrong_throughout(10), "metrics: .*the diagonal of confusion does not agree with top1"),
        ("metrics.reliability", DELETED, "metrics.reliability: Field required"),
        ("metrics.reliability", [], "metrics.reliability: List should have at least 1 item"),
        ("metrics.reliability", [bin_of(0.5, 1.01)], r"metrics.reliability.0.accuracy: "),
        ("metrics.reliability", [bin_of(0.5, 0.5, 0)], r"metrics.reliability.0.pictures: "),
        ("metrics.reliability", [bin_of(0.5, 0.5, 39)], "metrics: .*the bins of reliability do not add up"),
        (
            "metrics.reliability",
            [bin_of(0.5, 0.5, 30), bin_of(0.4, 0.4, 10)],
            "confidence of reliability is not ascending",
        ),
        ("metrics.reliability", [bin_of(1.0, 0.0)], "metrics: .*reliability does not agree with ece"),
        ("metrics.mistakes", DELETED, "metrics.mistakes: Field required"),
        ("metrics.mistakes", [mistake_of("cat", "lion")], "metrics.mistakes names a class that is not in labels"),
        ("metrics.mistakes", [mistake_of("cat", "dog", -1)], r"metrics.mistakes.0.image: "),
        ("metrics.auroc", {"noise": 1.01}, "metrics.auroc.noise: "),
        ("metrics.accepted", {"test": -0.01}, "metrics.accepted.test: "),
        ("metrics.other", {"test": 1.01}, "metrics.other.test: "),
        ("calibration", DELETED, "calibration: Field required"),
        ("calibration.colour", "red", "calibration.colour: Extra inputs"),
        ("calibration.temperature", DELETED, "calibration.temperature: Field required"),
        ("calibration.temperature", "1.5", "calibration.temperature: Input should be a valid number"),
        ("calibration.temperature", NAN, "calibration.temperature: Input should be a finite number"),
        ("calibration.temperature", 0.0, "calibration.temperature: Input should be greater than 0"),
        ("calibration.temperature", -1.0, "calibration.temperature: Input should be greater than 0"),
        ("calibration.views", DELETED, "calibration.views: Field required"),
        ("calibration.views", 0, "calibration.views: Input should be greater than or equal to 1"),
        ("calibration.pictures", DELETED, "calibration.pictures: Field required"),
        ("calibration.pictures", 0.5, "calibration.pictures: Input should be a valid integer"),
        ("calibration.pictures", -1, "calibration.pictures: Input should be greater than or equal to 0"),
        ("out_of_distribution", DELETED, "out_of_distribution: Field required"),
        ("out_of_distribution.colour", "red", "out_of_distribution.colour: Extra inputs"),
        ("out_of_distribution.score", DELETED, "out_of_distribution.score: Field required"),
        ("out_of_distribution.score.colour", "red", "out_of_distribution.score.mixture.colour: Extra inputs"),
        ("out_of_distribution.score.method", DELETED, "out_of_distribution.score: Unable to extract tag"),
        ("out_of_distribution.score.method", "margin", "out_of_distribution.score: Input tag 'margin' found"),
        ("out_of_distribution.score.method", "energy", "out_of_distribution.score.energy.feature_mean: Extra inputs"),
        ("out_of_distribution.score.energy_weight", 0.0, "score.mixture.energy_weight: .* greater than 0"),
        ("out_of_distribution.score.cosine_weight", DELETED, "score.mixture.cosine_weight: Field required"),
        ("out_of_distribution.score.feature_mean", DELETED, "score.mixture.feature_mean: Field required"),
        ("out_of_distribution.score.feature_mean", [], "score.mixture.feature_mean: List should have at least 1"),
        ("out_of_distribution.score.feature_mean", 0.5, "score.mixture.feature_mean: Input should be a valid array"),
        ("out_of_distribution.score.feature_mean", [0.5, "0.5"], r"score.mixture.feature_mean.1: .* valid number"),
        ("out_of_distribution.score.feature_mean", [0.5, NAN], r"score.mixture.feature_mean.1: .* finite number"),
        (
            "out_of_distribution.score.feature_mean",
            [0.5] * 63,
            "score.mixture: .*rows of class_directions are not as long as feature_mean",
        ),
        ("out_of_distribution.score.class_directions", DELETED, "score.mixture.class_directions: Field required"),
        ("out_of_distribution.score.class_directions", [1.0, 1.0], r"class_directions.0: .* valid array"),
        ("out_of_distribution.score.class_directions", directions(10, 2, 3, NAN), r"directions.2.3: .* finite number"),
        ("out_of_distribution.score.class_directions", directions(10, 2, 3, 0.1), "mixture: .*does not have length 1"),
        ("out_of_distribution.score.class_directions", directions(10, size=63), "rows of class_directions are not as"),
        ("out_of_distribution.score.class_directions", directions(9), "directions does not have one row per label"),
        ("reference.classes", [50], "reference.classes: "),
        ("reference.classes", [8] * 5, "reference.classes does not have one row per label"),
        ("reference.classes", [5] * 9 + [6], "a distribution do not add up to the number of pictures"),
        ("reference.classes", [-1, 51], "reference.classes.0: "),
        ("reference.confidence", {"edges": [0.5], "pictures": [50]}, "one bin more than edges"),
        ("reference.confidence", {"edges": [0.5, 0.5], "pictures": [0, 0, 50]}, "edges are not ascending"),
        (
            "reference.in_distribution",
            {"edges": [0.5], "pictures": [20, 21]},
            "do not add up to the number of pictures",
        ),
        ("reference.views", 0, "reference.views: "),
        ("reference.other", 1, "reference.other: Extra inputs"),
        ("out_of_distribution.least_contrast", DELETED, "out_of_distribution.least_contrast: Field required"),
        ("out_of_distribution.least_contrast", -1.0, "out_of_distribution.least_contrast: "),
        ("out_of_distribution.least_coarseness", 1.1, "out_of_distribution.least_coarseness: "),
        ("out_of_distribution.quantiles", DELETED, "out_of_distribution.quantiles: Field required"),
        ("out_of_distribution.quantiles", [0.5], "out_of_distribution.quantiles: List should have at least 2"),
        ("out_of_distribution.quantiles", [0.5, "1"], r"out_of_distribution.quantiles.1: .* valid number"),
        ("out_of_distribution.quantiles", [NAN, 0.5], r"out_of_distribution.quantiles.0: .* finite number"),
        ("out_of_distribution.quantiles", [0.1, 0.3, 0.2], "out_of_distribution: .*quantiles are not ascending"),
        ("out_of_distribution.thresholds", DELETED, "out_of_distribution.thresholds: Field required"),
        ("out_of_distribution.thresholds.accepted", DELETED, "thresholds.accepted: Field required"),
        ("out_of_distribution.thresholds.accepted", "0.05", "thresholds.accepted: Input should be a valid number"),
        ("out_of_distribution.thresholds.accepted", NAN, "out_of_distribution.thresholds.accepted: "),
        ("out_of_distribution.thresholds.uncertain", -0.01, "out_of_distribution.thresholds.uncertain: "),
        ("out_of_distribution.thresholds.accepted", 1.01, "out_of_distribution.thresholds.accepted: "),
        (
            "out_of_distribution.thresholds.uncertain",
            0.06,
            r"uncertain \(0.06\) is above accepted \(0.05\)",
        ),
        ("out_of_distribution.views", DELETED, "out_of_distribution.views: Field required"),
        ("out_of_distribution.views", 0, "out_of_distribution.views: Input should be greater than or equal to 1"),
        ("out_of_distribution.pictures", DELETED, "out_of_distribution.pictures: Field required"),
        ("out_of_distribution.pictures", 0, "out_of_distribution.pictures: "),
        ("files", {}, r"files does not contain model\.safetensors"),
        ("files", {"model.safetensors": "ABC"}, "files.model.safetensors: "),
    ],
)
def test_an_invalid_field_is_named(
    card: dict[str, Any], where: str, value: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(CardError, match=message) as caught:
        read(altered(card, where, value), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'card.json'}: ")
    assert str(caught.value).endswith("export the bundle again")


def test_a_confusion_with_another_number_of_classes_is_invalid(card: dict[str, Any], tmp_path: Path) -> None:
    rows = card["metrics"]["confusion"]
    square = [[*row, 0] for row in rows] + [[0] * 11]
    with pytest.raises(CardError, match=r"metrics\.confusion does not have one row per label"):
        read(altered(card, "metrics.confusion", square), tmp_path)


def test_further_errors_are_counted(card: dict[str, Any], tmp_path: Path) -> None:
    card["colour"], card["smell"], card["taste"] = "red", "none", "sweet"
    with pytest.raises(CardError, match=r"colour: .* \(and 2 more\)"):
        read(card, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_card_must_be_a_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(CardError, match="the card: "):
        read_card(tmp_path / "card.json")


def test_a_missing_or_binary_card_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="cannot be read: name a weights folder"):
        read_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CardError, match="cannot be read"):
        read_card(tmp_path / "card.json")


@pytest.mark.parametrize("arguments", [{}, {"depth": 3, "rate": 0.5, "kind": "plain", "bias": False, "norm": None}])
def test_the_arguments_of_a_network_are_any_json_scalars(
    card: dict[str, Any], arguments: dict[str, Any], tmp_path: Path
) -> None:
    expected = {"num_classes": 10, **arguments}
    found = read(altered(card, "architecture.arguments", expected), tmp_path).architecture.arguments
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


@pytest.mark.parametrize("version", [4])
def test_a_card_of_a_convertible_format_names_the_command(card: dict[str, Any], version: int, tmp_path: Path) -> None:
    with pytest.raises(CardError, match=rf"has format {version}: convert it with python -m model\.upgrade {tmp_path}"):
        read(altered(card, "format_version", version), tmp_path)


def test_a_version_is_12_hex_digits_and_does_not_change(card: dict[str, Any], tmp_path: Path) -> None:
    found = read(card, tmp_path)
    assert re.fullmatch(r"[0-9a-f]{12}", found.version)
    assert read(json.loads(found.model_dump_json()), tmp_path).version == found.version


def test_the_version_covers_the_revision_of_the_code(card: dict[str, Any], tmp_path: Path) -> None:
    found = read(card, tmp_path)
    constants = {"revision": REVISION, **found.model_dump(mode="json", include=_DECISIVE)}
    assert found.version == hashlib.sha256(json.dumps(constants, sort_keys=True).encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("files", {"model.safetensors": "0123456789abcdef" * 4}),
        ("calibration.temperature", 1.5),
        ("calibration.exponent", 0.5),
        ("calibration.views", 2),
        ("out_of_distribution.thresholds.accepted", 0.1),
        ("out_of_distribution.thresholds.uncertain", 0.01),
        ("out_of_distribution.least_contrast", 9.0),
        ("out_of_distribution.score", {"method": "energy"}),
        ("out_of_distribution.quantiles", [0.0, 1.0]),
        ("out_of_distribution.score.feature_mean", [0.5] * 64),
        ("input.interpolation", "bicubic"),
        ("input.resize", 40),
        ("labels", [*"abcdefghij"]),
        ("architecture.arguments", {"num_classes": 10}),
    ],
)
def test_the_version_changes_with_everything_that_determines_a_prediction(
    card: dict[str, Any], where: str, value: object, tmp_path: Path
) -> None:
    before = read(card, tmp_path).version
    card["metrics"]["mistakes"] = []
    assert read(altered(card, where, value), tmp_path).version != before


def test_another_openvino_model_is_another_version(card: dict[str, Any], tmp_path: Path) -> None:
    without, quantised = read(card, tmp_path), read(with_openvino(card), tmp_path)
    again = altered(with_openvino(card), "files", {**quantised.files, "openvino.bin": "1" * 64})
    assert len({without.version, quantised.version, read(again, tmp_path).version}) == 3


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("training.seconds", 9.0),
        ("training.recipe", {"name": "other"}),
        ("metrics.nll", 9.0),
        ("metrics.mistakes", []),
        ("reference", None),
    ],
)
def test_the_version_does_not_depend_on_training_history_and_metrics(
    card: dict[str, Any], where: str, value: object, tmp_path: Path
) -> None:
    before = read(card, tmp_path).version
    assert read(altered(card, where, value), tmp_path).version == before


def test_a_changed_copy_has_its_own_version(card: dict[str, Any], tmp_path: Path) -> None:
    found = read(card, tmp_path)
    before = found.version  # cached
    calibration = found.calibration.model_copy(update={"temperature": 9.0})
    changed = found.model_copy(update={"calibration": calibration})
    assert changed.version != before
    assert changed.model_copy(update={"calibration": found.calibration}).version == before
    assert found.version == before
    assert found.model_copy() == found


def with_openvino(card: dict[str, Any]) -> dict[str, Any]:
    about = {"weights": "int8", "pictures": 1, "top1": 0.5, "agreement": 0.5, "self_test": dict(card["self_test"])}
    files = dict.fromkeys(("openvino.xml", "openvino.bin"), "0" * 64)
    return {**card, "openvino": about, "files": {**card["files"], **files}}


def test_the_openvino_model_has_its_own_self_test(card: dict[str, Any], tmp_path: Path) -> None:
    found = read(altered(with_openvino(card), "openvino.self_test.tolerance", 0.5), tmp_path)
    assert found.self_test_on("openvino").tolerance == 0.5
    assert found.self_test_on("torch") == found.self_test
    assert read(card, tmp_path).self_test_on("openvino") == found.self_test


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("openvino", DELETED, "openvino: Field required"),
        ("openvino.weights", "int4", "openvino.weights: Input should be 'int8' or 'float16'"),
        ("openvino.agreement", 1.1, "openvino.agreement: "),
        ("openvino.self_test", DELETED, "openvino.self_test: Field required"),
        ("openvino.self_test.scores", [], "the lists of openvino.self_test do not have the same length"),
        ("openvino.self_test.logits", [[0.0]], "openvino.self_test.logits or probabilities does not have one column"),
        ("files", {"model.safetensors": "0" * 64}, "files does not contain openvino.xml"),
    ],
)
def test_an_invalid_field_of_the_openvino_model_is_named(
    where: str, value: object, message: str, card: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CardError, match=message):
        read(altered(with_openvino(card), where, value), tmp_path)


def with_onnx(card: dict[str, Any]) -> dict[str, Any]:
    files = {**card["files"], "model.onnx": "0" * 64}
    return {**card, "onnx": {"self_test": dict(card["self_test"])}, "files": files}


def test_the_onnx_model_has_its_own_self_test(card: dict[str, Any], tmp_path: Path) -> None:
    found = read(altered(with_onnx(card), "onnx.self_test.tolerance", 0.5), tmp_path)
    assert found.self_test_on("onnx").tolerance == 0.5
    assert found.self_test_on("torch") == found.self_test
    assert read(card, tmp_path).onnx is None


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("onnx.self_test", DELETED, "onnx.self_test: Field required"),
        ("onnx.self_test.scores", [], "the lists of onnx.self_test do not have the same length"),
        ("files", {"model.safetensors": "0" * 64}, "files does not contain model.onnx"),
    ],
)
def test_an_invalid_field_of_the_onnx_model_is_named(
    where: str, value: object, message: str, card: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CardError, match=message):
        read(altered(with_onnx(card), where, value), tmp_path)
