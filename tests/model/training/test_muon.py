import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.engines.torch import has_bfloat16
from model.training.muon import Muon, orthogonalised


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights_of(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(drawn(*shape, seed=number)) for number, shape in enumerate(shapes)]


def stepped(optimizer: Muon, weights: list[nn.Parameter], *seeds: int, scale: float = 1.0) -> None:
    """One step for each seed, with random gradients."""
    for seed in seeds:
        for number, weight in enumerate(weights):
            weight.grad = scale * drawn(*weight.shape, seed=100 * seed + number)
        optimizer.step()


# The orthogonalisation


@pytest.mark.parametrize(("iterations", "low", "high"), [(3, 0.6, 1.25), (5, 0.65, 1.25)])
@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (64, 27), (1, 9), (9, 1)])
@pytest.mark.parametrize("size", [1e-3, 1e4])
def test_singular_values_come_near_1_and_singular_vectors_stay(
    shape: tuple[int, int], iterations: int, low: float, high: float, size: float
) -> None:
    matrices = size * drawn(3, *shape)
    found = orthogonalised(matrices, iterations)
    assert found.shape == matrices.shape
    assert found.dtype == (torch.bfloat16 if has_bfloat16(found.device) else torch.float32)
    for before, after in zip(matrices, found.float(), strict=True):
        left, _, right = torch.linalg.svd(before, full_matrices=False)
        rotated = left.mT @ after @ right.mT  # diagonal where the singular vectors are the same
        assert low < rotated.diagonal().min()
        assert rotated.diagonal().max() < high
        assert (rotated - rotated.diagonal().diag()).abs().max() < 0.05
        torch.testing.assert_close(after, left @ rotated.diagonal().diag() @ right, atol=0.05, rtol=0)


def test_no_gradient_gives_no_step() -> None:
    assert (orthogonalised(torch.zeros(2, 8, 9), 3) == 0).all()


# A step


def reference(weight: Tensor, grads: list[Tensor], *, lr: float, momentum: float, iterations: int) -> Tensor:
    """A plain implementation for one weight: the norm is set, then an orthogonalised step of Nesterov momentum."""
    velocity = torch.zeros_like(weight)
    for grad in grads:
        velocity = momentum * velocity + grad
        ahead = grad + momentum * velocity
        step = orthogonalised(ahead.reshape(1, len(weight), -1), iterations)[0].float().reshape(weight.shape)
        weight = weight * len(weight) ** 0.5 / weight.norm() - lr * step
    return weight


@pytest.mark.parametrize(("momentum", "iterations"), [(0.0, 3), (0.6, 3), (0.9, 5)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_steps_are_those_of_a_plain_implementation(
    momentum: float, iterations: int, memory_format: torch.memory_format
) -> None:
    # Some have the same shape and are batched. They are wide, tall or square.
    shapes = [(8, 4, 3, 3), (8, 4, 3, 3), (64, 3, 3, 3), (8, 4, 3, 3), (6, 6, 1, 1)]
    weights = weights_of(*shapes)
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=memory_format)
    before = [weight.detach().clone() for weight in weights]
    stepped(Muon(weights, lr=0.1, momentum=momentum, iterations=iterations), weights, 1, 2, 3)
    for number, (weight, start) in enumerate(zip(weights, before, strict=True)):
        grads = [drawn(*start.shape, seed=100 * seed + number) for seed in (1, 2, 3)]
        expected = reference(start, grads, lr=0.1, momentum=momentum, iterations=iterations)
        torch.testing.assert_close(weight.detach(), expected, atol=2e-3, rtol=0)


def test_a_step_with_rate_0_only_sets_the_norm() -> None:
    weights = weights_of((16, 4, 3, 3), (9, 2, 1, 1))
    before = [weight.detach().clone() for weight in weights]
    stepped(Muon(weights, lr=0.0), weights, 1)
    for weight, start in zip(weights, before, strict=True):
        assert weight.norm().item() == pytest.approx(len(weight) ** 0.5, rel=1e-5)
        torch.testing.assert_close(weight.detach() / weight.norm().detach(), start / start.norm())


@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("lr", [0.01, 0.2])
def test_the_size_of_a_step_is_about_the_rate_times_the_norm(lr: float, size: float) -> None:
    (weight,) = weights = weights_of((16, 8, 3, 3))
    start = 4 * weight.detach() / weight.detach().norm()
    stepped(Muon(weights, lr=lr), weights, 1, scale=size)  # whatever the size of the gradient
    assert 0.65 * lr < (weight.detach() - start).norm() / start.norm() < 1.25 * lr


def test_single_weights_get_the_same_steps_as_a_batch() -> None:
    shapes = [(8, 4, 3, 3)] * 5
    together, alone = weights_of(*shapes), weights_of(*shapes)
    stepped(Muon(together, lr=0.1), together, 1, 2)
    optimizers = [Muon([weight], lr=0.1) for weight in alone]
    for seed in (1, 2):
        for number, (weight, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            weight.grad = drawn(*weight.shape, seed=100 * seed + number)
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=0)


def test_each_group_has_its_own_rate() -> None:
    fast, slow = weights_of((8, 4, 3, 3), (8, 4, 3, 3))
    starts = [8**0.5 * weight.detach() / weight.detach().norm() for weight in (fast, slow)]
    groups: list[dict[str, Any]] = [{"params": [fast], "lr": 0.2}, {"params": [slow]}]
    stepped(Muon(groups, lr=0.02), [fast, slow], 1)
    moved = [(weight.detach() - start).norm().item() for weight, start in zip((fast, slow), starts, strict=True)]
    assert moved[0] / moved[1] == pytest.approx(10, rel=0.1)


def test_a_weight_without_a_gradient_does_not_change() -> None:
    idle, busy = weights_of((8, 4, 3, 3), (8, 4, 3, 3))
    before = idle.detach().clone()
    optimizer = Muon([idle, busy], lr=0.1)
    busy.grad = torch.ones_like(busy)
    optimizer.step()
    assert torch.equal(idle, before)
    assert list(optimizer.state) == [busy]


def test_the_gradient_does_not_change() -> None:
    (weight,) = weights = weights_of((8, 4, 3, 3))
    stepped(Muon(weights, lr=0.1), weights, 1)
    assert weight.grad is not None
    assert torch.equal(weight.grad, drawn(8, 4, 3, 3, seed=100))


def test_a_loaded_state_continues_to_the_last_bit() -> None:
    shapes = [(8, 4, 3, 3), (8, 4, 3, 3), (32, 3, 1, 1)]
    weights = weights_of(*shapes)
    optimizer = Muon(weights, lr=0.1, momentum=0.8, iterations=4)
    stepped(optimizer, weights, 1, 2)
    others = [nn.Parameter(weight.detach().clone()) for weight in weights]
    other = Muon(others, lr=0.5)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["momentum"] == 0.8
    stepped(optimizer, weights, 3)
    stepped(other, others, 3)
    assert all(torch.equal(one, two) for one, two in zip(weights, others, strict=True))
    without_state = [nn.Parameter(drawn(*shape, seed=number)) for number, shape in enumerate(shapes)]
    stepped(Muon(without_state, lr=0.1, momentum=0.8, iterations=4), without_state, 3)
    assert not torch.equal(without_state[0], weights[0])
