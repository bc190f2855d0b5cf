import json
from pathlib import Path
from typing import Any

import pytest

from model.card import ModelCard, read_card
from model.errors import CardError

DELETED = object()


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
        ("input.mean", [0.5, float("nan"), 0.5], "input.mean.1: "),
        ("metrics.top1", float("nan"), "metrics.top1: "),
        ("metrics.top1", 1.01, "metrics.top1: "),
        ("training.seconds", float("inf"), "training.seconds: "),
        ("format_version", 2, "format_version: Input should be 1"),
        ("name", "../elsewhere", "name: "),
        ("input.crop", 33, r"input: .*crop \(33\) is larger than resize \(32\)"),
        ("labels", ["cat"] * 10, "labels are not unique"),
        ("labels", ["cat", "dog"], "num_classes is not the number of labels"),
        ("architecture.arguments.num_classes", 9, "num_classes is not the number of labels"),
        ("self_test.logits", [[0.0] * 9], "self_test.logits has not one number for each label"),
        ("self_test.logits", [], "self_test.logits: "),
        ("self_test.tolerance", 1.0, "self_test.tolerance: "),
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
