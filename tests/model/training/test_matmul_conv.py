import copy

import pytest
import torch
from torch import nn

from model.nets.zoo import build
from model.training.matmul_conv import MatmulConv2d, use_matmul_convolutions


def pair(stride: int, *, bias: bool, side: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """A plain convolution, and its copy that can use the matrix product."""
    torch.manual_seed(0)
    plain = nn.Conv2d(5, 7, 3, stride, padding=1, bias=bias)
    other = nn.Sequential(copy.deepcopy(plain))
    use_matmul_convolutions(other, side)
    assert isinstance(other[0], MatmulConv2d)
    return plain, other[0]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (1, 1)])
def test_values_and_gradients_equal_conv2d(stride: int, bias: bool, shape: tuple[int, int]) -> None:
    plain, ours = pair(stride, bias=bias, side=8)
    x = torch.randn(3, 5, *shape)
    grad = None
    results = []
    for conv in (plain, ours):
        seen = x.clone().requires_grad_()
        out = conv(seen)
        grad = torch.randn_like(out) if grad is None else grad
        out.backward(grad)
        results.append([out, seen.grad, *(parameter.grad for parameter in conv.parameters())])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def uses_the_matrix_product(out: torch.Tensor) -> bool:
    names, nodes = set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.add(type(node).__name__)
            nodes += [parent for parent, _ in node.next_functions]
    return any("MatmulConv3x3" in name for name in names)


@pytest.mark.parametrize(
    ("stride", "side", "expected"), [(1, 4, True), (1, 5, False), (2, 7, True), (2, 8, True), (2, 9, False)]
)
def test_the_size_of_the_output_decides(stride: int, side: int, expected: bool) -> None:
    _, ours = pair(stride, bias=False, side=4)
    out = ours(torch.randn(1, 5, side, side))
    assert uses_the_matrix_product(out) is expected


def test_under_autocast_the_product_is_bfloat16() -> None:
    plain, ours = pair(1, bias=True, side=4)
    x = torch.randn(2, 5, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), plain(x), atol=0.05, rtol=0.05)


def test_a_network_keeps_its_keys_and_its_logits() -> None:
    net = build("resnet18", width=8, conv_bias=True).eval()
    changed = copy.deepcopy(net)
    use_matmul_convolutions(changed, 8)
    assert list(changed.state_dict()) == list(net.state_dict())
    assert sum(isinstance(module, MatmulConv2d) for module in changed.modules()) == 17
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(changed(images), net(images), atol=1e-4, rtol=1e-4)


def test_other_convolutions_stay_as_they_are() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, dilation=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding=1, stride=(2, 1)),
    )
    use_matmul_convolutions(net, 8)
    assert not any(isinstance(module, MatmulConv2d) for module in net)
