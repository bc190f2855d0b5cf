"""Averages of weights."""

import pytest
import torch

from model.errors import RecipeError
from model.nets.zoo import build
from model.training.average import average
from model.training.pretrained import Init


def test_every_weight_and_statistic_is_the_weighted_mean() -> None:
    one, other = (build("resnet18", width=8) for _ in range(2))
    before = {name: tensor.clone() for name, tensor in one.state_dict().items()}
    average(one, Init(other.state_dict(), "0" * 64), 0.25)
    for name, tensor in one.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * before[name] + 0.25 * other.state_dict()[name])
    assert not torch.equal(one.state_dict()["conv1.weight"], before["conv1.weight"])


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(RecipeError, match="belongs to another network"):
        average(build("resnet18", width=8), Init(build("resnet18", width=16).state_dict(), "0" * 64), 0.5)


def test_a_classifier_of_other_classes_is_refused() -> None:
    with pytest.raises(RecipeError, match="--average-with belongs to another network"):
        average(build("resnet18", width=8), Init(build("resnet18", width=8, num_classes=3).state_dict(), "0" * 64), 0.5)
