"""Prepares a network for the PyTorch engines: which layers to convert, and which to fuse. Any layers are supported."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, saved_tensors_hooks
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.nets.base import HeadOutputs, Network

_MATRIX_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True, slots=True)
class Traced:
    """What one forward pass in evaluation mode shows about a network.

    Attributes:
        layers: the convolutions and linear layers that `forward_features` runs and `forward_head` does not.
        fusible: the pairs of a convolution and the batch normalisation that alone uses its output.
        out: what `forward_head` returned for one black image.
    """

    layers: list[nn.Module]
    fusible: list[tuple[nn.Conv2d, nn.BatchNorm2d]]
    out: HeadOutputs


def trace(net: Network, side: int) -> Traced:
    """Run `net`, which is in evaluation mode, once on an image of side x side pixels and observe it.

    Unlike torch.fx, this works for any Python code in the network, and has no effect on other threads.
    """
    called: Counter[nn.Module] = Counter()
    made_by: dict[Node, nn.Conv2d] = {}
    followed: list[tuple[Node, nn.BatchNorm2d]] = []

    def observe(module: nn.Module, args: tuple[object, ...], output: object) -> None:
        called[module] += 1
        if type(module) is nn.Conv2d and isinstance(output, Tensor) and output.grad_fn:
            made_by[output.grad_fn] = module
        if type(module) is nn.BatchNorm2d and args and isinstance(args[0], Tensor) and args[0].grad_fn:
            followed.append((args[0].grad_fn, module))

    handles = [module.register_forward_hook(observe) for module in net.modules()]
    try:
        device = next(net.parameters()).device
        image = torch.zeros(1, 3, side, side, device=device, requires_grad=True)
        # The autograd graph shows which operation uses which output. What a backward pass would need is not kept.
        with torch.enable_grad(), saved_tensors_hooks(lambda _: None, _no_backward):
            features = net.forward_features(image)
        in_features = called.copy()
        called.clear()
        with torch.no_grad():
            out = net.forward_head(features.detach())
    finally:
        for handle in handles:
            handle.remove()
    uses = _uses(features.grad_fn)
    return Traced(
        [module for module in in_features if isinstance(module, _MATRIX_LAYERS) and module not in called],
        [
            (made_by[node], norm)
            for node, norm in followed
            if node in made_by and uses[node] == in_features[made_by[node]] == in_features[norm] == 1
        ],
        out,
    )


def _no_backward(_: object) -> Tensor:
    raise RuntimeError("the graph of a trace keeps no activations")


def _uses(output: Node | None) -> Counter[Node]:
    """How many inputs of other nodes each node of an autograd graph is."""
    uses: Counter[Node] = Counter()
    pending = [output] if output else []
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is not None:
                if node not in uses:
                    pending.append(node)
                uses[node] += 1
    return uses


def fuse_batch_norms(net: Network, pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]]) -> list[nn.Conv2d]:
    """Fold each batch normalisation of `net` into its convolution: one multiplication and its rounding less.

    Returns:
        The new convolutions, which replace the old ones in `net`.
    """
    replacements: dict[nn.Module, nn.Module] = {}
    fused = []
    for conv, norm in pairs:
        fused.append(fuse_conv_bn_eval(conv, norm))
        replacements |= {conv: fused[-1], norm: nn.Identity()}
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if child in replacements:
                setattr(parent, name, replacements[child])
    return fused


def grad_cam(net: Network, features: Tensor, index: int) -> Tensor:
    """The last feature map, float32[N, D, h, w], to the maps of `GradientEngine.grad_cam`, float32[N, h, w].

    The gradients run through the head only.
    """
    with torch.enable_grad():
        leaf = features.detach().requires_grad_()
        (gradients,) = torch.autograd.grad(net.forward_head(leaf).logits[:, index].sum(), leaf)
    return (gradients.mean((2, 3), keepdim=True) * features).sum(1)


class _ExactFloat32:
    """The number of threads that compute in exact float32, and the settings from before the first of them."""

    lock = threading.Lock()
    inside = 0
    before = (False, False)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 in float32 on CUDA, where convolutions use TensorFloat-32 by default.

    The settings are the process's. The first thread that enters changes them, and the last one that leaves restores
    them.
    """
    convolutions, products, shared = torch.backends.cudnn, torch.backends.cuda.matmul, _ExactFloat32
    with shared.lock:
        if shared.inside == 0:
            shared.before = convolutions.allow_tf32, products.allow_tf32
            convolutions.allow_tf32 = products.allow_tf32 = False
        shared.inside += 1
    try:
        yield
    finally:
        with shared.lock:
            shared.inside -= 1
            if shared.inside == 0:
                convolutions.allow_tf32, products.allow_tf32 = shared.before
