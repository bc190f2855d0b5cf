import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import model
from model.bundle import open_bundle, update_bundle
from model.engines.base import Engine, GradientEngine
from model.engines.choose import choose
from model.engines.onnx import OnnxEngine
from model.engines.torch import TorchEngine, load_network
from model.errors import EngineError, IntegrityError

# Loads the bundle in a process that cannot import torch.
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import model
engine = model.load(sys.argv[1], engine="onnx").engine
print(engine.name, engine.device, engine.precision)
"""


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


def test_its_outputs_are_those_of_pytorch(onnx_bundle: Path, pixels: NDArray[np.uint8]) -> None:
    bundle = open_bundle(onnx_bundle)
    engine = choose(bundle, engine="onnx")
    assert isinstance(engine, Engine)
    assert not isinstance(engine, GradientEngine)
    reference = TorchEngine(load_network(bundle), bundle.card.input, device="cpu", precision="float32")
    for count in (1, 2, 7, 40):
        found, expected = engine.run(pixels[:count]), reference.run(pixels[:count])
        for ours, theirs in zip(found, expected, strict=True):
            assert ours is not None
            assert theirs is not None
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_a_bundle_is_loaded_without_torch(onnx_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, onnx_bundle], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "onnx cpu float32\n"), done.stderr


def test_auto_prefers_it_to_torch_on_a_cpu(onnx_bundle: Path, tiny_bundle: Path) -> None:
    assert model.load(onnx_bundle, device="cpu").engine.name == "onnx"
    assert model.load(tiny_bundle, device="cpu").engine.name == "torch"


def test_the_number_of_threads_is_set(onnx_bundle: Path, pixels: NDArray[np.uint8]) -> None:
    engine = choose(open_bundle(onnx_bundle), engine="onnx", threads=1)
    assert isinstance(engine, OnnxEngine)
    assert engine.run(pixels[:1]).logits.shape == (1, 10)


def test_a_bundle_without_a_model_is_an_engine_error(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="holds no ONNX model: add one with tenfold export --add"):
        model.load(tiny_bundle, engine="onnx")


def test_it_does_not_run_on_cuda(onnx_bundle: Path) -> None:
    with pytest.raises(EngineError, match="the engine 'onnx' runs on the CPU"):
        model.load(onnx_bundle, engine="onnx", device="cuda")


def test_a_file_that_is_no_model_is_an_integrity_error(onnx_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(onnx_bundle, tmp_path / "tiny")
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(IntegrityError, match="does not have the SHA-256 on its card"):
        model.load(folder, engine="onnx")
    with pytest.raises(IntegrityError, match=r"model.onnx cannot be run by ONNX Runtime \d"):
        OnnxEngine.from_bundle(type(open_bundle(onnx_bundle))(folder, open_bundle(onnx_bundle).card))


def test_the_self_test_is_that_of_this_engine(onnx_bundle: Path, tmp_path: Path) -> None:
    card = open_bundle(onnx_bundle).card
    assert card.onnx is not None
    assert card.self_test_on("onnx") == card.onnx.self_test
    folder = shutil.copytree(onnx_bundle, tmp_path / "tiny")
    logits = [[-value for value in row] for row in card.onnx.self_test.logits]
    other = card.onnx.model_copy(update={"self_test": card.onnx.self_test.model_copy(update={"logits": logits})})
    update_bundle(folder, {}, card.model_copy(update={"onnx": other}))
    with pytest.raises(IntegrityError, match="self-test of tiny failed in its logits on onnx"):
        model.load(folder, engine="onnx")
    model.load(folder, engine="torch", device="cpu")
