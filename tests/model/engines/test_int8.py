"""8-bit models compute the same on every CPU, also on those without VNNI, where sums of two products saturate."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from numpy.typing import NDArray

from model.card import OPENVINO_FILES, InputSpec
from model.training.quantize import converted, quantized
from tests.model.engines.exact import exact_outputs
from tests.model.nets.plain import PlainCNN
from tests.shipped import for_each_bundle

# Without VNNI the products of two activations, 0..255, and two weights are added in 16 bits.
LARGEST_WEIGHT = (2**15 - 1) // (2 * 255)

x86_only = pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="limits an x86 CPU to AVX2")

_PROGRAM = """
import sys
import numpy as np
from model.engines.openvino import OpenVinoEngine
np.save(sys.argv[3], OpenVinoEngine(sys.argv[1], 32, int8=True).run(np.load(sys.argv[2])).logits)
"""


def run_limited(path: Path, pixels: NDArray[np.uint8], isa: str, scratch: Path) -> NDArray[np.float32]:
    """The logits of a model in a process whose oneDNN uses no instructions newer than `isa`."""
    np.save(scratch / "pixels.npy", pixels)
    subprocess.run(
        [sys.executable, "-c", _PROGRAM, path, scratch / "pixels.npy", scratch / "logits.npy"],
        check=True, env={**os.environ, "ONEDNN_MAX_CPU_ISA": isa},
    )  # fmt: skip
    found: NDArray[np.float32] = np.load(scratch / "logits.npy")
    return found


def weights_of(model: openvino.Model) -> list[openvino.Node]:
    """The 8-bit weights of its convolutions and matrix products."""
    return [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() in (openvino.Type.i8, openvino.Type.u8)
    ]


def largest_weight(model: openvino.Model) -> int:
    weights = [node.get_data() for node in weights_of(model)]
    assert all(values.dtype == np.int8 for values in weights)
    return max(int(np.abs(values.astype(int)).max()) for values in weights)


def test_no_sum_of_two_products_of_a_quantised_bundle_can_saturate(int8_bundle: Path) -> None:
    assert 60 < largest_weight(openvino.Core().read_model(int8_bundle / OPENVINO_FILES[0])) <= LARGEST_WEIGHT


@for_each_bundle
def test_no_sum_of_two_products_of_a_shipped_bundle_can_saturate(shipped: Path) -> None:
    assert 60 < largest_weight(openvino.Core().read_model(shipped / OPENVINO_FILES[0])) <= LARGEST_WEIGHT


@pytest.fixture(scope="module")
def loud(spec: InputSpec) -> openvino.Model:
    """A model in int8 whose products are as large as they can be: all weights of a layer are nearly equal."""
    net = PlainCNN().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() > 1:
                parameter.copy_((1 + 0.1 * torch.rand_like(parameter)) / parameter[0].numel())
        net.classifier.weight *= torch.rand(10, 1)
    return quantized(converted(net, spec), bright(100), spec)


def bright(count: int) -> NDArray[np.uint8]:
    """Images near the upper end of the range."""
    return np.random.default_rng(count).integers(230, 256, (count, 32, 32, 3), np.uint8)


@x86_only
@pytest.mark.parametrize("isa", ["DEFAULT", "AVX2"])
def test_the_outputs_are_those_of_exact_arithmetic(loud: openvino.Model, isa: str, tmp_path: Path) -> None:
    openvino.save_model(loud, tmp_path / "model.xml")
    expected = exact_outputs(loud, bright(5))["logits"]
    found = run_limited(tmp_path / "model.xml", bright(5), isa, tmp_path)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@x86_only
def test_weights_of_the_whole_range_saturate_without_vnni(loud: openvino.Model, tmp_path: Path) -> None:
    """This shows that the limit to AVX2 takes effect, on CPUs with VNNI too."""
    model = loud.clone()
    for weights in weights_of(model):
        (convert,) = (value.get_node() for value in weights.output(0).get_target_inputs())
        (multiply,) = (value.get_node() for value in convert.output(0).get_target_inputs())
        scale = multiply.input_value(1).get_node()
        doubled = np.clip(2 * weights.get_data().astype(int), -127, 127).astype(np.int8)
        convert.input(0).replace_source_output(openvino.op.Constant(doubled).output(0))
        multiply.input(1).replace_source_output(openvino.op.Constant(scale.get_data() / 2).output(0))
    openvino.save_model(model, tmp_path / "model.xml")
    expected = exact_outputs(loud, bright(5))["logits"]
    np.testing.assert_allclose(exact_outputs(model, bright(5))["logits"], expected, rtol=0.02)
    found = run_limited(tmp_path / "model.xml", bright(5), "AVX2", tmp_path)
    assert np.abs(found - expected).max() > 0.1 * np.abs(expected).max()


@x86_only
def test_a_bundle_returns_the_same_with_and_without_vnni(int8_bundle: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    default, limited = (
        run_limited(int8_bundle / OPENVINO_FILES[0], pixels, isa, tmp_path) for isa in ("DEFAULT", "AVX2")
    )
    np.testing.assert_allclose(limited, default, atol=0.03 * np.abs(default).max())
