"""The initial classifier as a logistic regression."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from model.nets.base import Network
from model.nets.zoo import build
from model.training.data import DataSet, load
from model.training.loop import evaluation_logits, train
from model.training.pretrained import Init, read_state_dict, start_from
from model.training.probe import fit_classifier
from model.training.recipes import recipe_named
from tests.conftest import CPU, Silent
from tests.model.nets.plain import MixedNetwork, PlainCNN

RECIPE = replace(recipe_named("smoke"), epochs=1, sizes=(), lr=1e-9, linear_probe=True, backbone_lr=0.0)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load("synthetic", Path(), holdout=50, limit=300)


@pytest.mark.parametrize(
    "net", [build("resnet18", width=8, num_classes=10), PlainCNN(), MixedNetwork()], ids=lambda net: type(net).__name__
)
def test_the_classifier_is_the_logistic_regression_on_its_inputs(net: Network, data: DataSet) -> None:
    def logits() -> torch.Tensor:
        return evaluation_logits(net, data.train, RECIPE, CPU)

    fit_classifier(net, data.train.labels, logits)
    loss = F.cross_entropy(logits(), data.train.labels)
    assert loss < 0.7 * torch.tensor(10.0).log(), "that of equal probabilities"
    # At the minimum, the mean residual of each class is nearly 0: the penalty of the biases is small.
    residuals = logits().softmax(1) - F.one_hot(data.train.labels, 10)
    assert residuals.mean(0).abs().max() < 5e-3


@pytest.mark.parametrize(
    ("labels", "kept"), [(None, True), (tuple("abcdefghij"), False)], ids=["unknown classes", "other classes"]
)
def test_a_classifier_of_other_classes_is_replaced(
    labels: tuple[str, ...] | None, kept: bool, data: DataSet, tmp_path: Path
) -> None:
    state = {
        name: value.clone()
        for name, value in build(RECIPE.network, **RECIPE.network_arguments(10)).state_dict().items()
    }
    run = train(
        replace(RECIPE, ema_decay=0.0, weight_decay=0.0),
        data,
        device=CPU,
        seed=1,
        folder=tmp_path,
        observer=Silent(),
        init=Init(state, "0" * 64, labels),
    )
    assert torch.allclose(run.net.state_dict()["fc.weight"], state["fc.weight"], atol=1e-6) is kept
    assert torch.allclose(run.net.state_dict()["conv1.weight"], state["conv1.weight"], atol=1e-6)
    assert (run.history[0]["loss"] < 2) is not kept


def test_the_classes_of_a_bundle_are_known(tiny_bundle: Path, data: DataSet) -> None:
    init = read_state_dict(tiny_bundle)
    assert init.labels == data.labels
    assert read_state_dict(tiny_bundle / "model.safetensors").labels is None
    net = build("resnet18", stem="cifar", width=8, num_classes=10)
    random = net.state_dict()["fc.weight"].clone()
    assert not start_from(net, init.state, new_classifier=True)
    assert torch.equal(net.state_dict()["fc.weight"], random)
    assert start_from(net, init.state)
    assert torch.equal(net.state_dict()["fc.weight"], init.state["fc.weight"])
