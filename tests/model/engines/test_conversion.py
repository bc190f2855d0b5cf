import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.engines.conversion import exact_float32, fuse_batch_norms, trace
from model.nets.base import Network
from model.nets.zoo import build
from tests.model.nets.plain import MixedNetwork, PlainCNN


def with_random_statistics(net: Network) -> Network:
    """The network in float64 and evaluation mode, with statistics and parameters of BatchNorm that all matter."""
    generator = torch.Generator().manual_seed(0)
    for module in net.double().eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    return net


def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def batch_norms(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"stem": "cifar"}),
        ("resnet18", {"stem": "cifar", "conv_bias": True}),
        ("resnet50", {"stem": "imagenet"}),
    ],
)
def test_in_a_resnet_every_batch_norm_is_fused_and_the_function_stays(name: str, arguments: dict[str, Any]) -> None:
    net = with_random_statistics(build(name, width=4, **arguments))
    with torch.inference_mode():
        before = net(images())
    convolutions = fuse_batch_norms(net, trace(net.float(), 32).fusible)
    assert batch_norms(net) == []
    assert {id(module) for module in net.modules() if isinstance(module, nn.Conv2d)} == set(map(id, convolutions))
    with torch.inference_mode():
        torch.testing.assert_close(net.double()(images()), before, rtol=1e-4, atol=1e-4)


def test_only_a_batch_norm_that_alone_uses_a_convolution_is_fused() -> None:
    net: Any = with_random_statistics(MixedNetwork())
    with torch.inference_mode():
        before = net(images())
    fuse_batch_norms(net, trace(net.float(), 32).fusible)
    assert batch_norms(net) == ["unrelated"], "the output of `shared` is also added to its normalisation"
    with torch.inference_mode():
        torch.testing.assert_close(net.double()(images()), before, rtol=1e-4, atol=1e-4)


def test_a_convolution_that_runs_twice_is_not_fused() -> None:
    class Twice(PlainCNN):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward_features(self, x: Tensor) -> Tensor:
            return super().forward_features(self.again(self.norm(self.again(x))))

    assert trace(Twice().eval(), 32).fusible == []


def test_layers_of_the_features_are_distinguished_from_layers_of_the_head() -> None:
    net = MixedNetwork().eval()
    traced = trace(net, 32)
    names = {name for name, module in net.named_modules() if module in traced.layers}
    assert names == {"stem", "grouped", "shared", "mix"}
    assert traced.out.logits.shape == (1, 10)
    assert traced.out.features.shape == (1, 32)
    assert traced.out.maps is None


def test_a_layer_of_both_parts_is_one_of_the_head() -> None:
    class Shared(PlainCNN):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(64, 64)

        def forward_features(self, x: Tensor) -> Tensor:
            mixed: Tensor = self.mix(super().forward_features(x).movedim(1, -1))
            return mixed.movedim(-1, 1)

        def pool(self, features: Tensor) -> Tensor:
            pooled: Tensor = self.mix(super().pool(features))
            return pooled

    net = Shared().eval()
    names = {name for name, module in net.named_modules() if module in trace(net, 32).layers}
    assert names == {"body.0", "body.3", "body.6"}


def test_a_trace_leaves_the_network_as_it_was() -> None:
    net = MixedNetwork().eval()
    before = copy.deepcopy(net.state_dict())
    trace(net, 32)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_whose_parameters_are_frozen_is_traced_too() -> None:
    net = build("resnet18", width=4).eval().requires_grad_(False)
    assert len(trace(net, 32).fusible) == 20


def test_exact_float32_holds_inside_and_is_restored() -> None:
    def settings() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = settings()
    assert before[0], "PyTorch's default for convolutions"
    with exact_float32():
        assert settings() == (False, False)
    assert settings() == before
    with pytest.raises(KeyError), exact_float32():
        raise KeyError
    assert settings() == before

    # Two threads, neither of which leaves before the other has entered.
    first_inside, second_inside, first_outside = (threading.Event() for _ in range(3))
    seen = []

    def second() -> None:
        assert first_inside.wait(20)
        with exact_float32():
            second_inside.set()
            assert first_outside.wait(20)
            seen.append(settings())

    thread = threading.Thread(target=second)
    thread.start()
    with exact_float32():
        first_inside.set()
        assert second_inside.wait(20)
    first_outside.set()
    thread.join(20)
    assert seen == [(False, False)]
    assert settings() == before
