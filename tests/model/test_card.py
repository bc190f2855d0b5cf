import json
from pathlib import Path
from typing import Any

import pytest

from model.card import ModelCard, read_card
from model.errors import CardError

DELETED = object()
NAN = float("nan")


def directions(classes: int, row: int = 0, column: int = 0, value: float = 1.0, *, size: int = 64) -> list[list[float]]:
    """Well-formed class_directions, but for one number."""
    found = [[float(i == j) for j in range(size)] for i in range(classes)]
    found[row][column] = value
    return found


def wrong_throughout(classes: int) -> list[list[int]]:
    """The confusion of 40 pictures, none of them right."""
    found = [[0] * classes for _ in range(classes)]
    found[0][1] = 40
    return found


def bin_of(confidence: float, accuracy: float, pictures: int = 40) -> dict[str, float]:
    return {"confidence": confidence, "accuracy": accuracy, "pictures": pictures}


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


def test_a_card_survives_the_trip_through_json(card: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads(read(card, tmp_path).model_dump_json()) == card


@pytest.mark.parametrize(
    ("where", "value", "said"),
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
        ("format_version", 3, "format_version: Input should be 4"),
        ("name", "../elsewhere", "name: "),
        ("input.crop", 33, r"input: .*crop \(33\) is larger than resize \(32\)"),
        ("labels", ["cat"] * 10, "labels are not unique"),
        ("labels", ["cat", "dog"], "num_classes is not the number of labels"),
        ("architecture.arguments.num_classes", 9, "num_classes is not the number of labels"),
        ("self_test.logits", [[0.0] * 9], "self_test.logits or probabilities has not one number for each label"),
        ("self_test.probabilities", [[0.1] * 9], "self_test.logits or probabilities has not one number for each label"),
        ("self_test.logits", [], "self_test.logits: "),
        ("self_test.tolerance", 1.0, "self_test.tolerance: "),
        ("self_test.scores", DELETED, "self_test.scores: Field required"),
        ("self_test.scores", [1.0], "self_test has not as many rows of each kind"),
        ("self_test.probabilities", [], "self_test has not as many rows of each kind"),
        ("self_test.in_distribution", [0.5] * 5, "self_test has not as many rows of each kind"),
        ("metrics.ece_uncalibrated", DELETED, "metrics.ece_uncalibrated: Field required"),
        ("metrics.confusion", DELETED, "metrics.confusion: Field required"),
        ("metrics.confusion", [[1.5] * 10] * 10, r"metrics.confusion.0.0: Input should be a valid integer"),
        ("metrics.confusion", [[-1] * 10] * 10, r"metrics.confusion.0.0: Input should be greater than or equal to 0"),
        ("metrics.confusion", [[4] * 9] * 10, "metrics: .*confusion is not square"),
        ("metrics.confusion", [[1] * 10] * 10, "metrics: .*confusion does not hold as many pictures as were tested"),
        ("metrics.confusion", wrong_throughout(10), "metrics: .*confusion has not top1 on its diagonal"),
        ("metrics.reliability", DELETED, "metrics.reliability: Field required"),
        ("metrics.reliability", [], "metrics.reliability: List should have at least 1 item"),
        ("metrics.reliability", [bin_of(0.5, 1.01)], r"metrics.reliability.0.accuracy: "),
        ("metrics.reliability", [bin_of(0.5, 0.5, 0)], r"metrics.reliability.0.pictures: "),
        ("metrics.reliability", [bin_of(0.5, 0.5, 39)], "metrics: .*reliability does not hold as many pictures"),
        (
            "metrics.reliability",
            [bin_of(0.5, 0.5, 30), bin_of(0.4, 0.4, 10)],
            "confidence of reliability does not ascend",
        ),
        ("metrics.reliability", [bin_of(1.0, 0.0)], "metrics: .*the gaps of reliability are not ece"),
        ("metrics.auroc", {"noise": 1.01}, "metrics.auroc.noise: "),
        ("metrics.accepted", {"test": -0.01}, "metrics.accepted.test: "),
        ("calibration", DELETED, "calibration: Field required"),
        ("calibration.colour", "red", "calibration.colour: Extra inputs"),
        ("calibration.temperature", DELETED, "calibration.temperature: Field required"),
        ("calibration.temperature", "1.5", "calibration.temperature: Input should be a valid number"),
        ("calibration.temperature", NAN, "calibration.temperature: Input should be a finite number"),
        ("calibration.temperature", 0.0, "calibration.temperature: Input should be greater than 0"),
        ("calibration.temperature", -1.0, "calibration.temperature: Input should be greater than 0"),
        ("calibration.pictures", DELETED, "calibration.pictures: Field required"),
        ("calibration.pictures", 0.5, "calibration.pictures: Input should be a valid integer"),
        ("calibration.pictures", -1, "calibration.pictures: Input should be greater than or equal to 0"),
        ("out_of_distribution", DELETED, "out_of_distribution: Field required"),
        ("out_of_distribution.colour", "red", "out_of_distribution.colour: Extra inputs"),
        ("out_of_distribution.method", DELETED, "out_of_distribution.method: Field required"),
        ("out_of_distribution.method", "energy", "out_of_distribution.method: Input should be 'class-mean-cosine'"),
        ("out_of_distribution.feature_mean", DELETED, "out_of_distribution.feature_mean: Field required"),
        ("out_of_distribution.feature_mean", [], "out_of_distribution.feature_mean: List should have at least 1"),
        ("out_of_distribution.feature_mean", 0.5, "out_of_distribution.feature_mean: Input should be a valid array"),
        ("out_of_distribution.feature_mean", [0.5, "0.5"], r"out_of_distribution.feature_mean.1: .* valid number"),
        ("out_of_distribution.feature_mean", [0.5, NAN], r"out_of_distribution.feature_mean.1: .* finite number"),
        ("out_of_distribution.feature_mean", [0.5] * 63, "out_of_distribution: .*numbers a class as feature_mean"),
        ("out_of_distribution.class_directions", DELETED, "out_of_distribution.class_directions: Field required"),
        ("out_of_distribution.class_directions", [1.0, 1.0], r"class_directions.0: .* valid array"),
        ("out_of_distribution.class_directions", directions(10, 2, 3, NAN), r"class_directions.2.3: .* finite number"),
        ("out_of_distribution.class_directions", directions(10, 2, 3, 0.1), "out_of_distribution: .*not of length 1"),
        (
            "out_of_distribution.class_directions",
            directions(10, size=63),
            "out_of_distribution: .*numbers a class",
        ),
        ("out_of_distribution.class_directions", directions(9), "class_directions has not one row for each label"),
        ("out_of_distribution.quantiles", DELETED, "out_of_distribution.quantiles: Field required"),
        ("out_of_distribution.quantiles", [0.5], "out_of_distribution.quantiles: List should have at least 2"),
        ("out_of_distribution.quantiles", [0.5, "1"], r"out_of_distribution.quantiles.1: .* valid number"),
        ("out_of_distribution.quantiles", [NAN, 0.5], r"out_of_distribution.quantiles.0: .* finite number"),
        ("out_of_distribution.quantiles", [0.1, 0.3, 0.2], "out_of_distribution: .*quantiles do not ascend"),
        ("out_of_distribution.threshold", DELETED, "out_of_distribution.threshold: Field required"),
        ("out_of_distribution.threshold", "0.05", "out_of_distribution.threshold: Input should be a valid number"),
        ("out_of_distribution.threshold", NAN, "out_of_distribution.threshold: "),
        ("out_of_distribution.threshold", -0.01, "out_of_distribution.threshold: "),
        ("out_of_distribution.threshold", 1.01, "out_of_distribution.threshold: "),
        ("out_of_distribution.pictures", DELETED, "out_of_distribution.pictures: Field required"),
        ("out_of_distribution.pictures", 0, "out_of_distribution.pictures: "),
        ("files", {}, r"files lacks model\.safetensors"),
        ("files", {"model.safetensors": "ABC"}, "files.model.safetensors: "),
    ],
)
def test_a_card_that_is_not_quite_right_is_refused_by_field(
    card: dict[str, Any], where: str, value: object, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CardError, match=said) as caught:
        read(altered(card, where, value), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'card.json'}: ")
    assert str(caught.value).endswith("export the bundle again")


def test_a_confusion_of_another_number_of_classes_is_refused(card: dict[str, Any], tmp_path: Path) -> None:
    rows = card["metrics"]["confusion"]
    square = [[*row, 0] for row in rows] + [[0] * 11]
    with pytest.raises(CardError, match=r"metrics\.confusion has not one row for each label"):
        read(altered(card, "metrics.confusion", square), tmp_path)


def test_several_faults_are_counted(card: dict[str, Any], tmp_path: Path) -> None:
    card["colour"], card["smell"], card["taste"] = "red", "none", "sweet"
    with pytest.raises(CardError, match=r"colour: .* \(and 2 more\)"):
        read(card, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_what_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(CardError, match="the card: "):
        read_card(tmp_path / "card.json")


def test_a_missing_or_binary_card_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="cannot be read: name a weights folder"):
        read_card(tmp_path / "card.json")
    (tmp_path / "card.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CardError, match="cannot be read"):
        read_card(tmp_path / "card.json")


def test_the_version_is_the_start_of_the_weights_hash(card: dict[str, Any], tmp_path: Path) -> None:
    card["files"] = {"model.safetensors": "0123456789abcdef" * 4}
    assert read(card, tmp_path).version == "0123456789ab"


def with_openvino(card: dict[str, Any]) -> dict[str, Any]:
    about = {"weights": "int8", "pictures": 1, "top1": 0.5, "agreement": 0.5, "self_test": dict(card["self_test"])}
    files = dict.fromkeys(("openvino.xml", "openvino.bin"), "0" * 64)
    return {**card, "openvino": about, "files": {**card["files"], **files}}


def test_the_model_for_openvino_has_a_self_test_of_its_own(card: dict[str, Any], tmp_path: Path) -> None:
    found = read(altered(with_openvino(card), "openvino.self_test.tolerance", 0.5), tmp_path)
    assert found.self_test_on("openvino").tolerance == 0.5
    assert found.self_test_on("torch") == found.self_test
    assert read(card, tmp_path).self_test_on("openvino") == found.self_test


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("openvino", DELETED, "openvino: Field required"),
        ("openvino.weights", "int4", "openvino.weights: Input should be 'int8' or 'float16'"),
        ("openvino.agreement", 1.1, "openvino.agreement: "),
        ("openvino.self_test", DELETED, "openvino.self_test: Field required"),
        ("openvino.self_test.scores", [], "openvino.self_test has not as many rows of each kind"),
        ("openvino.self_test.logits", [[0.0]], "openvino.self_test.logits or probabilities has not one number for"),
        ("files", {"model.safetensors": "0" * 64}, "files lacks openvino.xml"),
    ],
)
def test_what_is_wrong_about_the_model_for_openvino_is_named(
    where: str, value: object, said: str, card: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CardError, match=said):
        read(altered(with_openvino(card), where, value), tmp_path)
