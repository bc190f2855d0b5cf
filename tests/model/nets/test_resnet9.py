import torch
from torch import nn

from model.nets.resnet9 import ResNet9
from model.nets.zoo import build


def test_each_stage_halves_the_map_and_has_its_width() -> None:
    net = ResNet9((8, 16, 24, 32), num_classes=7).eval()
    maps = {}
    for name in ("stem", "stage1", "stage2", "stage3"):
        net.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: maps.update({name: tuple(out.shape)})
        )
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert maps == {
        "stem": (2, 8, 32, 32),
        "stage1": (2, 16, 16, 16),
        "stage2": (2, 24, 8, 8),
        "stage3": (2, 32, 4, 4),
    }


def test_a_new_residual_block_is_its_shortcut() -> None:
    net = ResNet9((8, 16, 24, 32)).eval()
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(net.stage1[2](x), x)


def test_the_maps_are_exact() -> None:
    net = ResNet9((8, 16, 24, 32)).eval()
    out = net.forward_head(net.forward_features(torch.randn(2, 3, 32, 32)))
    assert out.maps is not None
    torch.testing.assert_close(out.maps.sum((2, 3)) + net.fc.bias, out.logits)


def test_muon_trains_every_convolution_but_the_first() -> None:
    net = build("resnet9")
    convolutions = {f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    assert set(net.muon_parameters()) == convolutions - {"stem.0.weight"}
    assert len(convolutions) == 9
