"""The correction of the biases of the classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model.engines.torch import TorchEngine
from model.nets.zoo import build
from model.training.biases import correct_biases, fit_biases
from model.training.calibrate import Fitted, observe
from model.training.data import DataSet, LabeledImages, load
from model.training.recipes import recipe_named

SPEC = recipe_named("smoke").input_spec()
PLANTED = np.array([0.8, -0.5, 0.2, -0.5])


def planted_logits(images: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that are drawn from the softmax of half of them plus the planted biases."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (images, 4)).astype(np.float32)
    gumbel = rng.gumbel(size=logits.shape)  # the largest sum is a draw from the softmax
    return logits, (logits / 2 + PLANTED + gumbel).argmax(axis=1)


def equal_weights(truth: np.ndarray) -> np.ndarray:
    return np.ones(len(truth), np.float32)


def test_biases_are_found_at_any_temperature() -> None:
    logits, truth = planted_logits(50_000)
    np.testing.assert_allclose(fit_biases(logits, truth, equal_weights(truth)), 2 * PLANTED, atol=0.1)


def test_a_few_images_change_little() -> None:
    logits, truth = planted_logits(50_000)
    right = logits.argmax(axis=1)[:20]
    assert np.abs(fit_biases(logits[:20], right, equal_weights(right))).max() < 0.2
    assert (truth[:20] != right).any(), "the labels of the model would say something else"


def test_a_class_with_a_higher_weight_gets_a_higher_bias() -> None:
    logits, truth = planted_logits(5_000)
    weights = np.where(truth == 1, 3, 1).astype(np.float32)
    equal, unequal = fit_biases(logits, truth, equal_weights(truth)), fit_biases(logits, truth, weights)
    assert unequal[1] > equal[1] + 0.5


def test_logits_without_information_give_finite_biases() -> None:
    truth = np.arange(100) % 4
    noise = np.random.default_rng(0).normal(0, 1000, (100, 4)).astype(np.float32)
    assert np.isfinite(fit_biases(noise, truth, equal_weights(truth))).all()


@pytest.fixture
def data() -> DataSet:
    return load("synthetic", Path(), holdout=200)


def test_a_wrong_bias_of_the_last_layer_is_corrected(data: DataSet) -> None:
    torch.manual_seed(1)
    net: Any = build("resnet18", **recipe_named("smoke").with_network("resnet18", width=8).network_arguments(10))
    nn.init.normal_(net.get_classifier().weight)

    def observed() -> Fitted:
        return observe(TorchEngine(net, SPEC, device="cpu", precision="float32"), SPEC, data)

    def logits() -> torch.Tensor:
        return torch.from_numpy(observed().out.logits)

    with torch.no_grad():
        net.get_classifier().bias -= logits().mean(dim=0)  # otherwise all images are of one class
    truth = logits().argmax(dim=1)
    data = replace(data, holdout=LabeledImages(data.holdout.pixels, truth))
    common = int(truth.mode().values)
    with torch.no_grad():
        net.get_classifier().bias[common] -= 5
    wrong = (logits().argmax(dim=1) != truth).float().mean()
    added = correct_biases(net, observed(), None)
    assert added is not None
    assert added[common] == max(added)
    assert (logits().argmax(dim=1) != truth).float().mean() < wrong / 2


def test_nothing_is_corrected_without_held_out_images_or_without_a_bias(data: DataSet) -> None:
    net: Any = build("resnet18", width=8)
    before = net.get_classifier().bias.clone()
    images = observe(TorchEngine(net, SPEC, device="cpu", precision="float32"), SPEC, data)
    assert correct_biases(net, images._replace(held_out=False), None) is None
    assert torch.equal(net.get_classifier().bias, before)
    net.get_classifier().bias = None
    assert correct_biases(net, images, None) is None
