from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import model
from model.bundle import open_bundle
from model.card import InputSpec
from model.engines.base import Engine, Outputs, passes
from model.engines.cuda import CudaEngine, fold_batch_norms, graph_sizes
from model.engines.torch import TorchEngine, load_network
from model.errors import EngineError
from model.nets.zoo import build

no_cuda_only = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

COUNTS = [*range(1, 41), 128, 129, 300]


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (max(COUNTS), 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec) -> Outputs:
    """What the CPU gives in float32, batch norms and all."""
    return TorchEngine(load_network(open_bundle(tiny_bundle)), spec, device="cpu", precision="float32").run(pixels)


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path, spec: InputSpec) -> CudaEngine:
    return CudaEngine(load_network(open_bundle(tiny_bundle)), spec)


def assert_close(found: Outputs, expected: Outputs, *, share: float) -> None:
    """Every number within `share` of the largest that is expected."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * np.abs(theirs).max())


def first(outputs: Outputs, count: int) -> Outputs:
    return Outputs(*(part[:count] for part in outputs))


@pytest.mark.parametrize(
    ("crop", "largest"), [(1, 128), (32, 128), (90, 128), (91, 64), (224, 16), (384, 4), (4096, 1)]
)
def test_the_larger_the_picture_the_smaller_the_largest_graph(crop: int, largest: int) -> None:
    sizes = graph_sizes(crop)
    assert sizes[0] == 1
    assert sizes[-1] == largest
    assert all(larger == 2 * smaller for smaller, larger in pairwise(sizes))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(1, 1)]),
        (3, [(3, 4)]),
        (32, [(32, 32)]),
        (40, [(40, 64)]),
        (128, [(128, 128)]),
        (129, [(128, 128), (1, 1)]),
        (300, [(128, 128), (128, 128), (44, 64)]),
    ],
)
def test_a_batch_is_filled_up_or_split(count: int, expected: list[tuple[int, int]]) -> None:
    assert list(passes(count, graph_sizes(32))) == expected


@pytest.mark.parametrize("crop", [32, 224, 4096])
def test_every_picture_is_in_one_pass_whose_graph_holds_it(crop: int) -> None:
    sizes = graph_sizes(crop)
    for count in range(400):
        split = list(passes(count, sizes))
        assert sum(taken for taken, _ in split) == count
        assert all(taken == sizes[-1] for taken, _ in split[:-1])
        for taken, size in split:
            assert 1 <= taken <= size
            assert size == 1 or size < 2 * taken  # a smaller one would not do


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {"stem": "cifar"}),
        ("resnet18", {"stem": "cifar", "conv_bias": True}),
        ("resnet50", {"stem": "imagenet"}),
    ],
)
def test_folding_leaves_no_batch_norm_and_the_same_function(name: str, arguments: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    net = build(name, width=4, **arguments).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2, generator=generator)
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
    batch = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    with torch.inference_mode():
        before = net(batch)
        folded = fold_batch_norms(net)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        torch.testing.assert_close(folded(batch), before, rtol=1e-9, atol=1e-9)


@no_cuda_only
def test_without_a_cuda_device_it_is_an_engine_error(tiny_bundle: Path, spec: InputSpec) -> None:
    with pytest.raises(EngineError, match="no CUDA device here: set the device to cpu or auto"):
        CudaEngine(load_network(open_bundle(tiny_bundle)), spec)


@pytest.mark.gpu
@needs_cuda
def test_it_serves_where_there_is_cuda(tiny_bundle: Path) -> None:
    for device in ("auto", "cuda"):
        engine = model.load(tiny_bundle, device=device).engine  # passes its self-test
        assert isinstance(engine, CudaEngine)
    assert isinstance(model.load(tiny_bundle, device="cpu").engine, TorchEngine)


@pytest.mark.gpu
@needs_cuda
def test_it_says_what_it_runs_on(engine: CudaEngine) -> None:
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert isinstance(engine, Engine)
    assert engine.name == "torch"
    assert engine.device == torch.cuda.get_device_name()
    assert engine.precision == ("bfloat16" if native else "float16")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("count", COUNTS)
def test_a_batch_of_any_size_agrees_with_the_cpu(
    engine: CudaEngine, pixels: NDArray[np.uint8], expected: Outputs, count: int
) -> None:
    engine.run(np.full((count + 3, 32, 32, 3), 255, np.uint8))  # what would be found in rows that are not filled
    assert_close(engine.run(pixels[:count]), first(expected, count), share=0.05)


@pytest.mark.gpu
@needs_cuda
def test_a_pictures_outputs_do_not_depend_on_its_batch(engine: CudaEngine, pixels: NDArray[np.uint8]) -> None:
    together = engine.run(pixels[:40])
    alone = [engine.run(pixels[i : i + 1]) for i in range(40)]
    assert_close(Outputs(*(np.concatenate(rows) for rows in zip(*alone, strict=True))), together, share=0.02)


@pytest.mark.gpu
@needs_cuda
def test_a_later_run_leaves_the_outputs_of_an_earlier_one_alone(engine: CudaEngine, pixels: NDArray[np.uint8]) -> None:
    earlier = engine.run(pixels[:8])
    kept = Outputs(*(part.copy() for part in earlier))
    engine.run(255 - pixels[:8])
    for part, copy in zip(earlier, kept, strict=True):
        np.testing.assert_array_equal(part, copy)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("crop", [32, 40])
def test_the_maps_and_the_bias_sum_to_the_logits(spec: InputSpec, crop: int) -> None:
    net = build("resnet18", num_classes=10, width=8)
    bias = net.fc.bias.detach().numpy().copy()
    engine = CudaEngine(net, spec.model_copy(update={"resize": crop, "crop": crop}))
    logits, _, maps = engine.run(np.random.default_rng(1).integers(0, 256, (131, crop, crop, 3), np.uint8))
    assert maps.shape == (131, 10, crop // 8, crop // 8)
    np.testing.assert_allclose(maps.sum((2, 3)) + bias, logits, atol=1e-4 * np.abs(logits).max())


@pytest.mark.gpu
@needs_cuda
def test_it_runs_in_another_thread(engine: CudaEngine, pixels: NDArray[np.uint8], expected: Outputs) -> None:
    found: list[Outputs] = []
    thread = Thread(target=lambda: found.append(engine.run(pixels[:5])))
    thread.start()
    thread.join()
    assert_close(found[0], first(expected, 5), share=0.05)


@pytest.mark.gpu
@needs_cuda
def test_pixels_need_not_lie_side_by_side(engine: CudaEngine, pixels: NDArray[np.uint8], expected: Outputs) -> None:
    backwards = engine.run(pixels[4::-1])
    assert_close(Outputs(*(part[::-1] for part in backwards)), first(expected, 5), share=0.05)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("shape", "kind"), [((2, 33, 32, 3), "uint8"), ((2, 32, 32, 3), "float32")])
def test_pixels_of_another_shape_or_type_are_an_engine_error(
    engine: CudaEngine, shape: tuple[int, ...], kind: str
) -> None:
    with pytest.raises(EngineError, match=r"the CUDA graphs take uint8\[N, 32, 32, 3\], not"):
        engine.run(np.zeros(shape, kind))


@pytest.mark.gpu
@needs_cuda
def test_large_pictures_do_not_take_the_whole_memory(spec: InputSpec) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    large = spec.model_copy(update={"resize": 256, "crop": 224})
    engine = CudaEngine(build("resnet18", num_classes=10), large)
    outputs = engine.run(np.zeros((17, 224, 224, 3), np.uint8))
    assert [part.shape for part in outputs] == [(17, 10), (17, 512), (17, 10, 28, 28)]
    assert torch.cuda.memory_reserved() - before < 2**30
