from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from model.errors import RecipeError
from model.nets.zoo import BUILDERS, build


def with_random_statistics(net: nn.Module) -> nn.Module:
    """The network with random means, variances, weights and biases of BatchNorm."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
            nn.init.uniform_(module.weight, 0.2, 0.6)
            nn.init.normal_(module.bias, 0, 0.1)
    return net


@pytest.mark.parametrize("name", [name for name in BUILDERS if name in torchvision.models.list_models()])
def test_torchvisions_weights_load_and_give_torchvisions_logits(name: str) -> None:
    torch.manual_seed(0)
    theirs = with_random_statistics(torchvision.models.get_model(name, weights=None)).eval()
    ours = build(name, num_classes=1000, stem="imagenet").eval()
    state = theirs.state_dict()
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {
        key: tensor.shape for key, tensor in state.items()
    }
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = theirs(images)
        assert expected.std() > 0.01, "equal logits would prove nothing"
        torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("groups", "width_per_group"), [(4, 4), (4, 64), (1, 128)])
def test_groups_and_their_width_set_the_3x3_convolutions_of_bottlenecks(groups: int, width_per_group: int) -> None:
    net: Any = build("resnet50", width=16, groups=groups, width_per_group=width_per_group)
    for stage, channels in ((net.layer1, 16), (net.layer4, 128)):
        inner = channels * width_per_group // 64 * groups
        assert stage[0].conv2.weight.shape == (inner, inner // groups, 3, 3)
        assert stage[0].conv3.weight.shape == (channels * 4, inner, 1, 1)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {"groups": 2}, "only networks of bottlenecks have groups"),
        ("resnext50_32x4d", {"width": 8}, "have none at 8"),
    ],
)
def test_groups_that_do_not_fit_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(name, **arguments)


def test_the_cifar_stem_keeps_the_side_and_the_imagenet_stem_quarters_it() -> None:
    image = torch.zeros(1, 3, 64, 64)
    sides = {}
    for stem in ("cifar", "imagenet"):
        net: Any = build("resnet18", stem=stem, width=8)
        sides[stem] = net.maxpool(net.conv1(image)).shape[-1]
    assert sides == {"cifar": 64, "imagenet": 16}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_zero_initialised_residual_makes_every_plain_block_its_shortcut(name: str) -> None:
    net: Any = build(name, width=8, zero_init_residual=True).eval()
    plain: Any = build(name, width=8).eval()
    block = net.layer1[1]
    x = torch.rand(2, block.conv1.in_channels, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), x)
        assert not torch.allclose(plain.layer1[1](x), x)


@pytest.mark.parametrize(
    ("name", "stem", "side"), [("resnet18", "cifar", 32), ("resnet50", "cifar", 40), ("resnet50", "imagenet", 64)]
)
def test_the_positive_part_of_the_maps_is_grad_cam(name: str, stem: str, side: int) -> None:
    torch.manual_seed(0)
    net: Any = with_random_statistics(build(name, width=8, num_classes=5, stem=stem)).double().eval()
    nn.init.normal_(net.fc.weight)  # without this the maps are nearly level
    images = torch.randn(3, 3, side, side, dtype=torch.float64)
    last: list[Tensor] = []
    net.layer4.register_forward_hook(lambda module, args, output: last.append(output))
    logits = net(images)
    _, _, maps = net.forward_head(net.forward_features(images))
    assert 0.1 < (maps > 0).double().mean() < 0.9
    for label in range(5):
        # Selvaraju et al. 2017: the logit's gradients, averaged over the cells, weight the channels.
        (gradients,) = torch.autograd.grad(logits[:, label].sum(), last[0], retain_graph=True)
        weighted = (gradients.mean((2, 3), keepdim=True) * last[0]).sum(1)
        torch.testing.assert_close(maps[:, label].relu(), weighted.relu(), rtol=1e-5, atol=0)
        torch.testing.assert_close(maps[:, label], weighted, rtol=1e-5, atol=0)


def test_the_head_returns_logits_and_features_and_the_maps_that_sum_to_the_logits() -> None:
    net: Any = with_random_statistics(build("resnet18", width=8, num_classes=7)).eval()
    images = torch.rand(3, 3, 48, 32)
    with torch.inference_mode():
        last = net.forward_features(images)
        logits, features, maps = net.forward_head(last)
        torch.testing.assert_close(logits, net(images))
        torch.testing.assert_close(features, last.mean((2, 3)))
        torch.testing.assert_close(net.fc(features), logits)
        assert features.shape == (3, 64)
        assert maps.shape == (3, 7, 6, 4)
        assert maps.std() > 1e-4
        torch.testing.assert_close(maps.sum((2, 3)) + net.fc.bias, logits, rtol=1e-5, atol=1e-5)


def test_the_classifier_is_fc() -> None:
    net = build("resnet18", width=8, num_classes=7)
    assert net.num_classes == 7
    assert net.classifier_keys() == {"fc.weight", "fc.bias"}


def test_muon_trains_all_filters() -> None:
    net = build("resnet18", width=8, conv_bias=True)
    filters = {name for name, parameter in net.named_parameters() if parameter.ndim == 4}
    assert set(net.muon_parameters()) == filters
    assert "conv1.weight" in filters
    assert set(net.no_weight_decay()) == set()
