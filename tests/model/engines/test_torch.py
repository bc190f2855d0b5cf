import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

import model
from model.bundle import open_bundle
from model.card import InputSpec
from model.engines.base import Engine, GradientEngine
from model.engines.choose import choose
from model.engines.torch import Precision, TorchEngine, has_bfloat16
from model.errors import EngineError
from model.nets.base import Network
from model.nets.zoo import build
from tests.conftest import maps_of
from tests.model.nets.plain import MixedNetwork, PlainCNN

# Networks of timm with BatchNormAct2d, LayerNorm, linear layers, grouped convolutions and squeeze-and-excitation.
SMALL = ("timm:convnext_atto", "timm:mobilenetv3_small_050", "timm:pvt_v2_b0")

no_cuda_only = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
PRECISIONS = pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])


def loaded_net(folder: Path) -> Network:
    """The bundle's network, without the code under test."""
    net = build("resnet18", num_classes=10, width=8)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval()


def normalised(pixels: NDArray[np.uint8], spec: InputSpec) -> torch.Tensor:
    """As in the papers: /255, mean, standard deviation."""
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return (batch - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture
def expected(tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """Logits of the plain network in float32."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = loaded_net(tiny_bundle)(normalised(pixels, spec)).numpy()
    return logits


def test_float32_returns_the_networks_own_logits(
    tiny_bundle: Path, pixels: NDArray[np.uint8], expected: NDArray[np.float32], spec: InputSpec
) -> None:
    engine = TorchEngine(loaded_net(tiny_bundle), spec, device="cpu", precision="float32")
    found = engine.run(pixels).logits
    assert isinstance(engine, Engine)
    assert engine.preferred_batch == 32
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


@PRECISIONS
def test_the_logits_and_the_maps_follow_from_the_features(
    tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec, precision: Precision, tolerance: float
) -> None:
    net: Any = loaded_net(tiny_bundle)
    with torch.inference_mode():
        expected = net.forward_features(normalised(pixels, spec)).mean((2, 3)).numpy()
    weight, bias = net.fc.weight.detach().numpy().copy(), net.fc.bias.detach().numpy().copy()
    out = TorchEngine(net, spec, device="cpu", precision=precision).run(pixels)
    logits, features, maps = out.logits, out.features, maps_of(out)
    assert features.dtype == np.float32
    assert features.shape == (5, 64)
    assert np.abs(features - expected).max() <= tolerance * np.abs(expected).max()
    head = features @ weight.T + bias
    assert np.abs(logits - head).max() <= 0.1 * tolerance * np.abs(head).max()
    assert maps.dtype == np.float32
    assert maps.shape == (5, 10, 4, 4)
    assert np.abs(maps.sum((2, 3)) + bias - logits).max() <= 0.1 * tolerance * np.abs(head).max()
    assert maps.std(axis=(2, 3)).min() > 1e-4, "level maps would say nothing"


@PRECISIONS
@pytest.mark.parametrize(
    "make", [PlainCNN, MixedNetwork, *(partial(build, name) for name in SMALL)], ids=["plain", "mixed", *SMALL]
)
def test_a_network_of_other_layers_runs_in_every_precision(
    make: Callable[[], Network], pixels: NDArray[np.uint8], spec: InputSpec, precision: Precision, tolerance: float
) -> None:
    torch.manual_seed(0)
    net = make().eval()
    with torch.inference_mode():
        logits, features, maps = (
            None if part is None else part.numpy()
            for part in net.forward_head(net.forward_features(normalised(pixels, spec)))
        )
    out = TorchEngine(net, spec, device="cpu", precision=precision).run(pixels)
    for found, expected in zip(out, (logits, features, maps), strict=True):
        assert (found is None) is (expected is None)
        if found is not None and expected is not None:
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


class WithoutBfloat16(PlainCNN):
    def forward_features(self, x: Tensor) -> Tensor:
        features = super().forward_features(x)
        if features.dtype == torch.bfloat16:
            raise RuntimeError("not implemented for 'BFloat16'")
        return features


def test_the_instructions_of_the_cpu_decide_the_precision(spec: InputSpec) -> None:
    native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if platform.machine() in {"x86_64", "AMD64"}:
        native = native and bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    assert has_bfloat16(torch.device("cpu")) is native
    assert TorchEngine(PlainCNN(), spec, device="cpu").precision == ("bfloat16" if native else "float32")


def test_onednn_without_bfloat16_means_float32() -> None:
    program = """
import torch
from model.engines.torch import has_bfloat16
print(has_bfloat16(torch.device("cpu")))
"""
    limited = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=limited)
    assert done.stdout == "False\n"


def test_a_network_that_cannot_run_in_bfloat16_runs_in_float32(spec: InputSpec) -> None:
    assert TorchEngine(WithoutBfloat16(), spec, device="cpu").precision == "float32"


@pytest.mark.parametrize(("name", "last"), [("timm:convnext_atto", "stages"), ("timm:mobilenetv3_small_050", "blocks")])
def test_grad_cam_is_that_of_the_gradients_of_the_whole_network(
    name: str, last: str, pixels: NDArray[np.uint8], spec: InputSpec
) -> None:
    torch.manual_seed(0)
    net: Any = build(name, num_classes=3).eval()
    spec = spec.model_copy(update={"resize": 96, "crop": 96})
    pixels = pixels.repeat(3, axis=1).repeat(3, axis=2)
    outputs: list[Tensor] = []
    handle = getattr(net.net, last).register_forward_hook(lambda module, args, output: outputs.append(output))
    logits = net.net(normalised(pixels, spec))
    handle.remove()
    engine = TorchEngine(net, spec, device="cpu", precision="float32")
    assert isinstance(engine, GradientEngine)
    for label in range(3):
        # Selvaraju et al. 2017: the logit's gradients, averaged over the cells, weight the channels.
        (gradients,) = torch.autograd.grad(logits[:, label].sum(), outputs[0], retain_graph=True)
        expected = (gradients.mean((2, 3), keepdim=True) * outputs[0]).sum(1).detach().numpy()
        assert expected.shape == (5, 3, 3)
        assert 0.01 < (expected > 0).mean() < 0.99
        found = engine.grad_cam(pixels, label)
        assert found is not None
        np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())


def test_grad_cam_of_exact_maps_is_the_maps(tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec) -> None:
    engine = TorchEngine(loaded_net(tiny_bundle), spec, device="cpu", precision="float32")
    found = engine.grad_cam(pixels, 3)
    assert found is not None
    np.testing.assert_allclose(found, maps_of(engine.run(pixels))[:, 3], atol=1e-4)


def test_tokens_are_not_places(pixels: NDArray[np.uint8], spec: InputSpec) -> None:
    net = build("timm:vit_tiny_patch16_224", img_size=32)
    assert TorchEngine(net, spec, device="cpu", precision="float32").grad_cam(pixels, 0) is None


def test_bfloat16_is_for_the_matrix_layers_of_the_features_only(spec: InputSpec) -> None:
    net = MixedNetwork()
    TorchEngine(net, spec, device="cpu", precision="bfloat16")
    for name, module in net.named_modules():
        for parameter in module.parameters(recurse=False):
            lower = isinstance(module, nn.Conv2d | nn.Linear) and name not in {"hidden", "classifier"}
            assert parameter.dtype == (torch.bfloat16 if lower else torch.float32), name


def test_the_check_of_bfloat16_leaves_the_weights_exact(
    tiny_bundle: Path, pixels: NDArray[np.uint8], expected: NDArray[np.float32], spec: InputSpec
) -> None:
    engine = TorchEngine(loaded_net(tiny_bundle), spec, device="cpu")
    limit = {"float32": 1e-4, "bfloat16": 0.05 * np.abs(expected).max()}[engine.precision]
    assert np.abs(engine.run(pixels).logits - expected).max() < limit


def test_the_logits_of_an_image_do_not_depend_on_its_batch(tiny_classifier: model.Classifier) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 32, 32, 3), np.uint8)
    together = tiny_classifier.engine.run(pixels).logits
    alone = np.concatenate([tiny_classifier.engine.run(pixels[i : i + 1]).logits for i in range(9)])
    np.testing.assert_allclose(alone, together, atol=0.02 * np.abs(together).max())


def test_the_bundle_decides_the_network(tiny_bundle: Path) -> None:
    engine = choose(open_bundle(tiny_bundle), device="cpu")
    assert (engine.name, engine.device) == ("torch", "cpu")
    assert engine.run(np.zeros((3, 32, 32, 3), np.uint8)).logits.shape == (3, 10)


def test_the_number_of_threads_is_set(tiny_bundle: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        choose(open_bundle(tiny_bundle), device="cpu", threads=1)
        assert torch.get_num_threads() == 1
        choose(open_bundle(tiny_bundle), device="cpu", threads=0)  # the runtime's default
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@no_cuda_only
def test_cuda_without_a_device_is_an_engine_error(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="no CUDA device here: set the device to cpu or auto"):
        model.load(tiny_bundle, device="cuda")


@no_cuda_only
def test_auto_is_the_cpu_if_there_is_no_cuda(tiny_bundle: Path) -> None:
    assert model.load(tiny_bundle).engine.device == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_cuda_agrees_with_the_cpu(
    tiny_bundle: Path,
    pixels: NDArray[np.uint8],
    expected: NDArray[np.float32],
    spec: InputSpec,
    precision: Precision,
    tolerance: float,
) -> None:
    engine = TorchEngine(loaded_net(tiny_bundle), spec, device="cuda", precision=precision)
    assert engine.device == torch.cuda.get_device_name()
    assert np.abs(engine.run(pixels).logits - expected).max() < tolerance * np.abs(expected).max()
    model.load(tiny_bundle, device="cuda")  # passes its self-test
