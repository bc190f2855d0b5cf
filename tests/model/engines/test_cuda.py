import copy
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import model
from model.bundle import open_bundle
from model.card import InputSpec
from model.engines.base import Engine, Outputs
from model.engines.cuda import CudaEngine, graph_sizes
from model.engines.torch import TorchEngine, load_network
from model.errors import EngineError
from model.nets.base import Network
from model.nets.zoo import build
from tests.conftest import maps_of
from tests.model.nets.plain import MixedNetwork, PlainCNN

no_cuda_only = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

COUNTS = [*range(1, 41), 128, 129, 300]


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (max(COUNTS), 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec) -> Outputs:
    """The outputs of the CPU in float32, without fusion."""
    return TorchEngine(load_network(open_bundle(tiny_bundle)), spec, device="cpu", precision="float32").run(pixels)


@pytest.fixture(scope="module")
def engine(tiny_bundle: Path, spec: InputSpec) -> CudaEngine:
    return CudaEngine(load_network(open_bundle(tiny_bundle)), spec)


def parts(outputs: Outputs) -> list[NDArray[np.float32]]:
    return [part for part in outputs if part is not None]


def assert_close(found: Outputs, expected: Outputs, *, tolerance: float) -> None:
    """Every number is within `tolerance` times the largest expected one."""
    for ours, theirs in zip(parts(found), parts(expected), strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def first(outputs: Outputs, count: int) -> Outputs:
    return Outputs(*(part[:count] for part in parts(outputs)))


@pytest.mark.parametrize(
    ("crop", "largest"), [(1, 128), (32, 128), (90, 128), (91, 64), (224, 16), (384, 4), (4096, 1)]
)
def test_larger_images_have_a_smaller_largest_graph(crop: int, largest: int) -> None:
    sizes = graph_sizes(crop)
    assert sizes[0] == 1
    assert sizes[-1] == largest
    assert all(larger == 2 * smaller for smaller, larger in pairwise(sizes))


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
def test_it_names_its_hardware(engine: CudaEngine) -> None:
    native = torch.cuda.get_device_capability() >= (8, 0)
    assert isinstance(engine, Engine)
    assert engine.name == "torch"
    assert engine.device == torch.cuda.get_device_name()
    assert engine.precision == ("bfloat16" if native else "float16")
    assert engine.preferred_batch == 128


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("make", [PlainCNN, MixedNetwork])
def test_a_network_of_other_layers_agrees_with_the_cpu(
    make: type[Network], spec: InputSpec, pixels: NDArray[np.uint8]
) -> None:
    net = make()
    expected = TorchEngine(copy.deepcopy(net), spec, device="cpu", precision="float32").run(pixels[:9])
    found = CudaEngine(net, spec).run(pixels[:9])
    assert (found.maps is None) is (expected.maps is None)
    assert_close(found, expected, tolerance=0.05)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("count", COUNTS)
def test_a_batch_of_any_size_agrees_with_the_cpu(
    engine: CudaEngine, pixels: NDArray[np.uint8], expected: Outputs, count: int
) -> None:
    engine.run(np.full((count + 3, 32, 32, 3), 255, np.uint8))  # remains in the rows that are not filled
    assert_close(engine.run(pixels[:count]), first(expected, count), tolerance=0.05)


@pytest.mark.gpu
@needs_cuda
def test_the_outputs_of_an_image_do_not_depend_on_its_batch(engine: CudaEngine, pixels: NDArray[np.uint8]) -> None:
    together = engine.run(pixels[:40])
    alone = [engine.run(pixels[i : i + 1]) for i in range(40)]
    assert_close(
        Outputs(*(np.concatenate(rows) for rows in zip(*map(parts, alone), strict=True))), together, tolerance=0.02
    )


@pytest.mark.gpu
@needs_cuda
def test_a_later_run_does_not_change_earlier_outputs(engine: CudaEngine, pixels: NDArray[np.uint8]) -> None:
    earlier = engine.run(pixels[:8])
    kept = [part.copy() for part in parts(earlier)]
    engine.run(255 - pixels[:8])
    for part, before in zip(parts(earlier), kept, strict=True):
        np.testing.assert_array_equal(part, before)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("crop", [32, 40])
def test_the_maps_and_the_bias_sum_to_the_logits(spec: InputSpec, crop: int) -> None:
    net: Any = build("resnet18", num_classes=10, width=8)
    bias = net.fc.bias.detach().numpy().copy()
    engine = CudaEngine(net, spec.model_copy(update={"resize": crop, "crop": crop}))
    out = engine.run(np.random.default_rng(1).integers(0, 256, (131, crop, crop, 3), np.uint8))
    logits, maps = out.logits, maps_of(out)
    assert maps.shape == (131, 10, crop // 8, crop // 8)
    np.testing.assert_allclose(maps.sum((2, 3)) + bias, logits, atol=1e-4 * np.abs(logits).max())


@pytest.mark.gpu
@needs_cuda
def test_it_runs_in_another_thread(engine: CudaEngine, pixels: NDArray[np.uint8], expected: Outputs) -> None:
    found: list[Outputs] = []
    thread = Thread(target=lambda: found.append(engine.run(pixels[:5])))
    thread.start()
    thread.join()
    assert_close(found[0], first(expected, 5), tolerance=0.05)


@pytest.mark.gpu
@needs_cuda
def test_pixels_need_not_be_contiguous(engine: CudaEngine, pixels: NDArray[np.uint8], expected: Outputs) -> None:
    backwards = engine.run(pixels[4::-1])
    assert_close(Outputs(*(part[::-1] for part in parts(backwards))), first(expected, 5), tolerance=0.05)


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
def test_large_images_do_not_take_the_whole_memory(spec: InputSpec) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    large = spec.model_copy(update={"resize": 256, "crop": 224})
    engine = CudaEngine(build("resnet18", num_classes=10), large)
    outputs = engine.run(np.zeros((17, 224, 224, 3), np.uint8))
    assert [part.shape for part in parts(outputs)] == [(17, 10), (17, 512), (17, 10, 28, 28)]
    assert torch.cuda.memory_reserved() - before < 2**30
