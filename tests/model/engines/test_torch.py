from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import model
from model.bundle import open_bundle
from model.card import InputSpec
from model.engines.base import Engine, choose
from model.engines.torch import Precision, TorchEngine
from model.errors import EngineError
from model.nets.resnet import ResNet
from model.nets.zoo import build

no_cuda_only = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


def loaded_net(folder: Path) -> ResNet:
    """The bundle's network by hand."""
    net = build("resnet18", num_classes=10, width=8)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval()


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture
def expected(tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """Logits of the plain network in float32, normalised as the papers do: /255, mean, std."""
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    batch = (batch - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    with torch.inference_mode():
        logits: NDArray[np.float32] = loaded_net(tiny_bundle)(batch).numpy()
    return logits


def test_float32_gives_the_networks_own_logits(
    tiny_bundle: Path, pixels: NDArray[np.uint8], expected: NDArray[np.float32], spec: InputSpec
) -> None:
    engine = TorchEngine(loaded_net(tiny_bundle), spec, device="cpu", precision="float32")
    found = engine.run(pixels).logits
    assert isinstance(engine, Engine)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_bfloat16_is_close_but_is_not_float32(
    tiny_bundle: Path, pixels: NDArray[np.uint8], expected: NDArray[np.float32], spec: InputSpec
) -> None:
    engine = TorchEngine(loaded_net(tiny_bundle), spec, device="cpu", precision="bfloat16")
    found = engine.run(pixels).logits
    assert engine.precision == "bfloat16"
    assert found.dtype == np.float32
    assert 1e-5 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize(("precision", "share"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_the_features_and_the_maps_are_what_the_head_makes_the_logits_of(
    tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec, precision: Precision, share: float
) -> None:
    net = loaded_net(tiny_bundle)
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    batch = (batch - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    with torch.inference_mode():
        expected = net.features(batch).numpy()
    weight, bias = net.fc.weight.detach().numpy().copy(), net.fc.bias.detach().numpy().copy()
    logits, features, maps = TorchEngine(net, spec, device="cpu", precision=precision).run(pixels)
    assert features.dtype == np.float32
    assert features.shape == (5, 64)
    assert np.abs(features - expected).max() <= share * np.abs(expected).max()
    head = features @ weight.T + bias
    assert np.abs(logits - head).max() <= 0.1 * share * np.abs(head).max()
    assert maps.dtype == np.float32
    assert maps.shape == (5, 10, 4, 4)
    assert np.abs(maps.sum((2, 3)) + bias - logits).max() <= 0.1 * share * np.abs(head).max()
    assert maps.std(axis=(2, 3)).min() > 1e-4, "maps that are level would say nothing"


def test_the_trial_of_precisions_leaves_the_weights_exact(
    tiny_bundle: Path, pixels: NDArray[np.uint8], expected: NDArray[np.float32], spec: InputSpec
) -> None:
    engine = TorchEngine(loaded_net(tiny_bundle), spec, device="cpu")
    limit = {"float32": 1e-4, "bfloat16": 0.05 * np.abs(expected).max()}[engine.precision]
    assert np.abs(engine.run(pixels).logits - expected).max() < limit


def test_a_pictures_logits_do_not_depend_on_its_batch(tiny_classifier: model.Classifier) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3), np.uint8)
    together = tiny_classifier.engine.run(pixels).logits
    alone = np.concatenate([tiny_classifier.engine.run(pixels[i : i + 1]).logits for i in range(9)])
    np.testing.assert_allclose(alone, together, atol=0.02 * np.abs(together).max())


def test_the_bundle_decides_the_network(tiny_bundle: Path, expected: NDArray[np.float32]) -> None:
    engine = choose(open_bundle(tiny_bundle), device="cpu")
    assert (engine.name, engine.device) == ("torch", "cpu")
    assert engine.run(np.zeros((3, 32, 32, 3), np.uint8)).logits.shape == (3, 10)


def test_the_number_of_threads_is_taken_over(tiny_bundle: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        choose(open_bundle(tiny_bundle), device="cpu", threads=1)
        assert torch.get_num_threads() == 1
        choose(open_bundle(tiny_bundle), device="cpu", threads=0)  # left to the runtime
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@no_cuda_only
def test_asking_for_cuda_without_one_is_an_engine_error(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="no CUDA device here: set the device to cpu or auto"):
        model.load(tiny_bundle, device="cuda")


@no_cuda_only
def test_auto_takes_the_cpu_where_there_is_no_cuda(tiny_classifier: model.Classifier, tiny_bundle: Path) -> None:
    assert model.load(tiny_bundle).engine.device == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "share"), [("float32", 0.01), ("bfloat16", 0.05)])
def test_cuda_agrees_with_the_cpu(
    tiny_bundle: Path,
    pixels: NDArray[np.uint8],
    expected: NDArray[np.float32],
    spec: InputSpec,
    precision: Precision,
    share: float,
) -> None:
    engine = TorchEngine(loaded_net(tiny_bundle), spec, device="cuda", precision=precision)
    assert engine.device == torch.cuda.get_device_name()
    assert np.abs(engine.run(pixels).logits - expected).max() < share * np.abs(expected).max()
    model.load(tiny_bundle, device="cuda")  # passes its self-test
