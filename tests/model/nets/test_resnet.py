from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from model.nets.zoo import build, map_size


def with_lived_in_statistics(net: nn.Module) -> nn.Module:
    """BatchNorm whose means, variances, weights and biases all matter."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_torchvisions_weights_load_as_they_are_and_give_torchvisions_logits(name: str) -> None:
    torch.manual_seed(0)
    theirs = with_lived_in_statistics(torchvision.models.get_model(name, weights=None)).eval()
    ours = build(name, num_classes=1000, stem="imagenet").eval()
    state = theirs.state_dict()
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in state.items()
    }
    ours.load_state_dict(state)
    pictures = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(pictures)
        assert expected.std() > 0.01, "logits that are all alike would prove nothing"
        torch.testing.assert_close(ours(pictures), expected, atol=1e-4, rtol=0)


def test_the_cifar_stem_keeps_the_side_and_the_imagenet_stem_quarters_it() -> None:
    picture = torch.zeros(1, 3, 64, 64)
    sides = {}
    for stem in ("cifar", "imagenet"):
        net: Any = build("resnet18", stem=stem, width=8)
        sides[stem] = net.maxpool(net.conv1(picture)).shape[-1]
    assert sides == {"cifar": 64, "imagenet": 16}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_zero_initialised_residual_makes_every_plain_block_its_shortcut(name: str) -> None:
    net: Any = build(name, width=8, zero_init_residual=True).eval()
    block = net.layer1[1]
    x = torch.rand(2, block.conv1.in_channels, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), x)
        assert not torch.allclose(build(name, width=8).eval().layer1[1](x), x)


def test_the_head_sees_the_features() -> None:
    net: Any = build("resnet18", width=8, num_classes=7).eval()
    picture = torch.rand(3, 3, 32, 32)
    with torch.inference_mode():
        features = net.features(picture)
        assert features.shape == (3, 64)
        torch.testing.assert_close(net.fc(features), net(picture))


@pytest.mark.parametrize(
    ("name", "stem", "side"), [("resnet18", "cifar", 32), ("resnet50", "cifar", 40), ("resnet50", "imagenet", 64)]
)
def test_the_positive_part_of_the_maps_is_grad_cam(name: str, stem: str, side: int) -> None:
    torch.manual_seed(0)
    net: Any = with_lived_in_statistics(build(name, width=8, num_classes=5, stem=stem)).double().eval()
    nn.init.normal_(net.fc.weight)  # else the maps are level
    pictures = torch.randn(3, 3, side, side, dtype=torch.float64)
    last: list[Tensor] = []
    net.layer4.register_forward_hook(lambda module, given, found: last.append(found))
    logits = net(pictures)
    _, _, maps = net.head(net.stages(pictures))
    assert 0.1 < (maps > 0).double().mean() < 0.9
    for label in range(5):
        # Selvaraju et al. 2017: the logit's gradients, averaged over the cells, weigh the channels.
        (gradients,) = torch.autograd.grad(logits[:, label].sum(), last[0], retain_graph=True)
        weighed = (gradients.mean((2, 3), keepdim=True) * last[0]).sum(1)
        assert weighed.shape[1:] == map_size(net, side)
        torch.testing.assert_close(maps[:, label].relu(), weighed.relu(), rtol=1e-5, atol=0)
        torch.testing.assert_close(maps[:, label], weighed, rtol=1e-5, atol=0)


def test_the_head_gives_logits_and_features_and_the_maps_that_sum_to_the_logits() -> None:
    net: Any = with_lived_in_statistics(build("resnet18", width=8, num_classes=7)).eval()
    picture = torch.rand(3, 3, 48, 32)
    with torch.inference_mode():
        logits, features, maps = net.head(net.stages(picture))
        torch.testing.assert_close(logits, net(picture))
        torch.testing.assert_close(features, net.features(picture))
        assert maps.shape == (3, 7, 6, 4)
        assert maps.std() > 1e-4
        torch.testing.assert_close(maps.sum((2, 3)) + net.fc.bias, logits, rtol=1e-5, atol=1e-5)
