import re
import textwrap
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model.card import InputSpec
from model.errors import RecipeError
from model.nets.base import HeadOutputs
from model.nets.check import check_network
from model.nets.zoo import BUILDERS, accepts, build
from tests.app.running import ROOT
from tests.model.nets.plain import MixedNetwork, PlainCNN


class Flat(PlainCNN):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x).flatten(1)


class NoBatch(PlainCNN):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x)[:1]


class FixedSize(PlainCNN):
    def forward_features(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 32:
            raise ValueError("this network takes images of 32 x 32 pixels\nand no others")
        return super().forward_features(x)


class Unpooled(PlainCNN):
    def forward_head(self, features: Tensor) -> HeadOutputs:
        logits, pooled, maps = super().forward_head(features)
        return HeadOutputs(logits, pooled[:, :, None, None], maps)


class SmallMaps(PlainCNN):
    def forward_head(self, features: Tensor) -> HeadOutputs:
        logits, pooled, _ = super().forward_head(features)
        return HeadOutputs(logits, pooled, logits[:, :, None, None])


class WrongMaps(PlainCNN):
    def forward_head(self, features: Tensor) -> HeadOutputs:
        logits, pooled, maps = super().forward_head(features)
        assert maps is not None
        return HeadOutputs(logits, pooled, maps * 2)


class TwoHeads(PlainCNN):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class NotFinite(PlainCNN):
    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x) * torch.nan


class Misnamed(PlainCNN):
    def muon_parameters(self) -> set[str]:
        return {"fc.weight"}


@pytest.mark.parametrize("name", BUILDERS)
def test_our_networks_keep_to_the_contract(name: str, spec: InputSpec) -> None:
    narrow = {"width": 16} if accepts(name, "width") else {}
    check_network(build(name, num_classes=7, **narrow), spec, num_classes=7, sides=(20, 32))


@pytest.mark.parametrize("make", [PlainCNN, MixedNetwork])
def test_networks_that_are_no_resnets_do(make: Callable[[], nn.Module], spec: InputSpec) -> None:
    check_network(make(), spec, num_classes=10, sides=(16, 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 10), "Linear is not a Network: derive it from Network of model/nets/base.py"),
        (Flat, r"forward_features returns the shape \[2, \d+\], not \[N, D, h, w\]"),
        (NoBatch, r"forward_features returns the shape \[1, 64, 8, 8\]"),
        (lambda: PlainCNN(num_classes=9), r"num_classes is 9 and \[2, 9\] the shape of the logits, not \[2, 10\]"),
        (Unpooled, r"forward_head returns features of shape \[2, 64, 1, 1\], not \[N, D\]"),
        (SmallMaps, r"forward_head returns maps of shape \[2, 10, 1, 1\], not \[2, 10, 8, 8\]"),
        (WrongMaps, "its maps do not sum to the logits less a constant: return None for the maps"),
        (TwoHeads, "forward and forward_head return different logits"),
        (NotFinite, "its logits for random images of 32 x 32 pixels are not finite"),
        (Misnamed, "muon_parameters names 'fc.weight', which is not one of its parameters"),
    ],
)
def test_a_break_of_the_contract_is_one_sentence(make: Callable[[], nn.Module], message: str, spec: InputSpec) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        check_network(make(), spec, num_classes=10)
    assert "\n" not in str(caught.value)


def test_the_example_in_the_guide_keeps_to_the_contract(spec: InputSpec) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^   ```python\n(.*?)^   ```$", guide, re.MULTILINE | re.DOTALL)
    names: dict[str, type[nn.Module]] = {}
    exec(textwrap.dedent(block), names)
    net = names["PlainCNN"](num_classes=7, width=8)
    check_network(net, spec, num_classes=7, sides=(16, 32))


def test_every_size_that_will_be_trained_at_is_tried(spec: InputSpec) -> None:
    check_network(FixedSize(), spec, num_classes=10)
    message = r"on images of 20 x 20 pixels \(ValueError: this network takes images of 32 x 32 pixels\): choose another"
    with pytest.raises(RecipeError, match=message):
        check_network(FixedSize(), spec, num_classes=10, sides=(20, 32))


def test_the_check_leaves_the_network_and_the_random_numbers_as_they_were(spec: InputSpec) -> None:
    net = MixedNetwork().train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    check_network(net, spec, num_classes=10)
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
