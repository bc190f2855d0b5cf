import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import model
from model.errors import SaveError
from model.nets.zoo import build
from model.training.data import load
from model.training.export import at_rest, export
from model.training.loop import Run, describe, network_arguments
from model.training.recipes import recipe_named


def test_weights_rest_in_float16_and_what_is_small_in_float32() -> None:
    net = build("resnet18", width=8)
    stored = at_rest(net.state_dict())
    assert stored["layer1.0.conv1.weight"].dtype == stored["fc.weight"].dtype == torch.float16
    assert stored["fc.bias"].dtype == stored["bn1.running_var"].dtype == torch.float32
    assert stored["bn1.num_batches_tracked"].dtype == torch.int64
    assert stored.keys() == net.state_dict().keys()


def test_a_bundle_holds_what_its_card_says(tiny_bundle: Path) -> None:
    files = {path.relative_to(tiny_bundle).as_posix() for path in tiny_bundle.rglob("*") if path.is_file()}
    assert files == {
        "card.json",
        "model.safetensors",
        "README.md",
        "plots/curves.png",
        "plots/confusion.png",
        "plots/reliability.png",
    }
    card = json.loads((tiny_bundle / "card.json").read_text())
    weights = (tiny_bundle / "model.safetensors").read_bytes()
    assert card["files"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert card["complexity"]["parameters"] == sum(
        tensor.numel() for key, tensor in load_file(tiny_bundle / "model.safetensors").items() if not is_buffer(key)
    )
    assert card["training"]["recipe"] == json.loads(json.dumps(asdict(replace(recipe_named("smoke"), width=8))))
    assert (card["training"]["pictures"], card["metrics"]["pictures"]) == (40, 40)
    assert card["labels"][3] == "cat"


def is_buffer(key: str) -> bool:
    return key.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_what_ships_is_what_was_measured(tmp_path: Path, tiny_bundle: Path) -> None:
    recipe = replace(recipe_named("smoke"), width=8)
    data = load("synthetic", Path(), holdout=50)
    torch.manual_seed(1)
    net = build("resnet18", **network_arguments(recipe, 10))
    run = Run(recipe, net, [{"epoch": 1, "train_loss": 2.0}], about=describe(torch.device("cpu"), 1))
    card, scores = export(run, data, tmp_path / "new", name="new", device="cpu")
    classifier = model.load(tmp_path / "new", device="cpu")
    assert classifier.card == card
    predictions = classifier.classify(data.test.pixels.numpy())
    chosen = np.array([prediction.probabilities.argmax() for prediction in predictions])
    assert (chosen == data.test.labels.numpy()).mean() == pytest.approx(card.metrics.top1, abs=0.03)
    assert scores.top1 == card.metrics.top1
    with pytest.raises(SaveError, match="tiny exists"):
        export(run, data, tiny_bundle, name="tiny", device="cpu")


def test_the_articles_run_ends_in_a_bundle_that_classifies_at_224(article_bundle: Path, cat_jpeg: bytes) -> None:
    classifier = model.load(article_bundle, device="cpu")
    card = classifier.card
    assert (card.input.resize, card.input.crop) == (256, 224)
    assert card.complexity.parameters == 11_173_962 + 3_840
    assert card.complexity.multiply_adds / 1e9 == pytest.approx(27.2, abs=0.1)
    picture = model.prepare(cat_jpeg, card.input, max_pixels=50_000_000)
    assert picture.pixels.shape == (224, 224, 3)
    (prediction,) = classifier.classify(picture.pixels[None])
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_a_bottleneck_network_ends_in_a_bundle_that_classifies(bottleneck_bundle: Path, cat_jpeg: bytes) -> None:
    classifier = model.load(bottleneck_bundle, device="cpu")
    assert classifier.card.architecture.name == "resnet50"
    assert classifier.card.architecture.arguments["stem"] == "imagenet"
    picture = model.prepare(cat_jpeg, classifier.card.input, max_pixels=50_000_000)
    (prediction,) = classifier.classify(picture.pixels[None])
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
