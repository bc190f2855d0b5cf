import hashlib
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import model
from model.calibration import OutOfDistributionScore, softmax
from model.card import ModelCard, Thresholds
from model.classifier import self_test_pixels
from model.engines.torch import TorchEngine
from model.errors import SaveError, TrainingError
from model.nets.zoo import build
from model.training.calibrate import fit, observe
from model.training.data import DataSet, load
from model.training.evaluate import assess, mistakes
from model.training.export import export, to_storage_dtype
from model.training.loop import Run, describe, train
from model.training.recipes import recipe_named
from tests.conftest import Silent


def test_weights_are_stored_in_float16_and_vectors_in_float32() -> None:
    net = build("resnet18", width=8)
    stored = to_storage_dtype(net.state_dict())
    assert stored["layer1.0.conv1.weight"].dtype == stored["fc.weight"].dtype == torch.float16
    assert stored["fc.bias"].dtype == stored["bn1.running_var"].dtype == torch.float32
    assert stored["bn1.num_batches_tracked"].dtype == torch.int64
    assert stored.keys() == net.state_dict().keys()


def test_outputs_that_are_not_finite_end_the_export(tmp_path: Path) -> None:
    """A run without held-out images does not notice them before."""
    recipe = recipe_named("smoke").with_network("resnet18", width=8)
    data = load("synthetic", Path(), holdout=0, limit=20)
    net = build(recipe.network, **recipe.network_arguments(10))
    net.state_dict()["bn1.running_var"].fill_(-1)
    with pytest.raises(TrainingError, match="the outputs of the network are not finite: train it again at a lower"):
        export(
            Run(recipe, net, about=describe(torch.device("cpu"), 0)), data, tmp_path / "new", name="new", device="cpu"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_contains_the_files_on_its_card(tiny_bundle: Path) -> None:
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
    recipe = recipe_named("smoke").with_network("resnet18", width=8)
    assert card["training"]["recipe"] == json.loads(json.dumps(asdict(recipe)))
    assert (card["training"]["pictures"], card["metrics"]["pictures"]) == (40, 40)
    assert card["labels"][3] == "cat"
    assert card["format_version"] == 5
    assert card["calibration"]["pictures"] == card["out_of_distribution"]["pictures"] == 40
    assert card["calibration"]["views"] == card["out_of_distribution"]["views"] == 1


def is_buffer(key: str) -> bool:
    return key.endswith(("running_mean", "running_var", "num_batches_tracked"))


@dataclass
class Exported:
    folder: Path
    run: Run
    data: DataSet
    card: ModelCard


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle of a random network whose logits have a larger range than those of `tiny_bundle`."""
    recipe = recipe_named("smoke").with_network("resnet18", width=8)
    data = load("synthetic", Path(), holdout=50)
    torch.manual_seed(1)
    net: Any = build("resnet18", **recipe.network_arguments(10))
    torch.nn.init.normal_(net.fc.weight)
    run = Run(recipe, net, [{"epoch": 1, "train_loss": 2.0}], about=describe(torch.device("cpu"), 1))
    folder = tmp_path_factory.mktemp("exported") / "new"
    card = export(run, data, folder, name="new", device="cpu")
    return Exported(folder, run, data, card)


def test_the_bundle_contains_the_network_that_was_tested(exported: Exported, tiny_bundle: Path) -> None:
    card, test = exported.card, exported.data.test
    classifier = model.load(exported.folder, device="cpu")
    assert classifier.card == card
    predictions = classifier.classify(list(test.pixels.numpy()[:, None]))
    chosen = np.array([prediction.probabilities.argmax() for prediction in predictions])
    assert (chosen == test.labels.numpy()).mean() == pytest.approx(card.metrics.top1, abs=0.03)
    accepted = np.mean([prediction.accepted() for prediction in predictions])
    assert accepted == pytest.approx(card.metrics.accepted["test"], abs=0.05)
    with pytest.raises(SaveError, match="tiny exists"):
        export(exported.run, exported.data, tiny_bundle, name="tiny", device="cpu")


def test_the_biases_of_the_classes_are_corrected(exported: Exported) -> None:
    stored = load_file(exported.folder / "model.safetensors")
    trained = to_storage_dtype(exported.run.net.state_dict())
    assert exported.card.training.class_biases is not None
    added = torch.tensor(exported.card.training.class_biases)
    assert added.abs().max() > 0.01
    torch.testing.assert_close(stored["fc.bias"], trained["fc.bias"] + added)
    assert all(torch.equal(stored[key], trained[key]) for key in trained if key != "fc.bias")
    assert "| biases of the classes | changed by" in (exported.folder / "README.md").read_text(encoding="utf-8")


def test_the_card_agrees_with_the_weights(exported: Exported) -> None:
    card, data = exported.card, exported.data
    net = build("resnet18", **card.architecture.arguments)
    net.load_state_dict(load_file(exported.folder / "model.safetensors"))
    engine = TorchEngine(net, card.input, device="cpu", precision="float32")

    spec = card.out_of_distribution
    calibration, expected, reference = fit(observe(engine, card.input, data), outliers=False)
    assert card.calibration.temperature == pytest.approx(calibration.temperature, abs=1e-3)
    assert card.calibration.pictures == 50
    assert spec.score.method == expected.score.method == "mixture"
    assert spec.quantiles == pytest.approx(expected.quantiles, rel=1e-3)
    assert (spec.thresholds, spec.pictures) == (Thresholds(accepted=0.05, uncertain=0.02), 50)
    assert card.reference is not None
    assert reference is not None
    assert card.reference.classes == pytest.approx(reference.classes, abs=2)
    assert card.reference.confidence.edges == pytest.approx(reference.confidence.edges, abs=1e-2)
    assert card.reference.pictures == 50

    assessment = assess(engine, card.input, card.calibration, spec, data.test)
    metrics = card.metrics
    assert (metrics.pictures, metrics.top1) == (100, assessment.scores.top1)
    assert metrics.nll == pytest.approx(assessment.scores.nll, rel=1e-4)
    assert metrics.ece == pytest.approx(assessment.scores.ece, abs=1e-3)
    assert metrics.ece_uncalibrated == pytest.approx(assessment.uncalibrated.ece, abs=1e-3)
    assert metrics.ece < metrics.ece_uncalibrated
    assert metrics.confusion == assessment.scores.confusion.tolist()
    assert [sum(row) for row in metrics.confusion] == np.bincount(data.test.labels.numpy(), minlength=10).tolist()
    bins = assessment.scores.bins[assessment.scores.bins[:, 0] > 0]
    assert len(bins) > 1
    found = [[part.pictures, part.confidence, part.accuracy] for part in metrics.reliability]
    np.testing.assert_allclose(found, bins, rtol=1e-3)
    assert metrics.mistakes == mistakes(assessment.scores, data.labels)
    assert metrics.auroc == pytest.approx(assessment.auroc, abs=1e-3)
    assert metrics.accepted == pytest.approx(assessment.accepted, abs=0.011)
    assert metrics.other == pytest.approx(assessment.other, abs=0.011)

    test = card.self_test
    out = engine.run(self_test_pixels(test.seed, len(test.logits), 32))
    scores = OutOfDistributionScore(spec).of_views(out.logits, out.features)
    np.testing.assert_allclose(test.logits, out.logits, atol=1e-4)
    np.testing.assert_allclose(test.scores, scores, rtol=1e-3)
    constants = card.calibration.temperature, card.calibration.exponent
    np.testing.assert_allclose(test.probabilities, softmax(out.logits, *constants), atol=1e-4)
    np.testing.assert_allclose(test.in_distribution, OutOfDistributionScore(spec).fractions(scores), atol=0.01)


def test_without_held_out_images_the_probabilities_are_not_calibrated(tmp_path: Path) -> None:
    recipe = replace(recipe_named("smoke"), epochs=1, batch_size=20, holdout=0)
    data = load("synthetic", Path(), holdout=recipe.holdout, limit=40)
    run = train(recipe, data, device=torch.device("cpu"), seed=0, folder=tmp_path / "run", observer=Silent())
    card = export(run, data, tmp_path / "new", name="new", device="cpu")
    assert (card.calibration.temperature, card.calibration.pictures) == (1, 0)
    assert card.metrics.ece == card.metrics.ece_uncalibrated
    assert card.out_of_distribution.pictures == 40, "training images"
    assert model.load(tmp_path / "new", device="cpu").card == card
    text = (tmp_path / "new" / "README.md").read_text()
    assert "No images were held out" in text
    assert re.search(r"at least 5% of 40\s+training\s+images", text)


@pytest.mark.slow
def test_a_bundle_of_the_article_recipe_classifies_at_224(article_bundle: Path, cat_jpeg: bytes) -> None:
    classifier = model.load(article_bundle, device="cpu")
    card = classifier.card
    assert (card.input.resize, card.input.crop) == (256, 224)
    assert card.complexity.parameters == 11_173_962 + 3_840
    assert card.complexity.multiply_adds / 1e9 == pytest.approx(27.2, abs=0.1)
    image = model.preprocess(cat_jpeg, card.input, max_pixels=50_000_000)
    assert image.pixels.shape == (1, 224, 224, 3)
    (prediction,) = classifier.classify([image.pixels])
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_a_bundle_of_a_bottleneck_network_classifies(bottleneck_bundle: Path, cat_jpeg: bytes) -> None:
    classifier = model.load(bottleneck_bundle, device="cpu")
    assert classifier.card.architecture.name == "resnet50"
    assert classifier.card.architecture.arguments["stem"] == "imagenet"
    image = model.preprocess(cat_jpeg, classifier.card.input, max_pixels=50_000_000)
    (prediction,) = classifier.classify([image.pixels])
    assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
