import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

import model
from model.bundle import CARD_FILE, open_bundle, update_bundle
from model.card import OPENVINO_FILES, InputSpec, read_card
from model.engines.base import Engine, Outputs
from model.engines.choose import choose
from model.engines.openvino import OpenVinoEngine
from model.engines.torch import TorchEngine, load_network
from model.errors import EngineError, IntegrityError
from model.nets.base import Network
from model.nets.zoo import build
from model.training.quantize import converted, quantized
from tests.conftest import maps_of
from tests.model.nets.plain import MixedNetwork, PlainCNN

_WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "safetensors", "nncf"):
    sys.modules[name] = None  # its import fails
import numpy as np
import model
classifier = model.load(sys.argv[1])
prediction, = classifier.classify([np.zeros((1, 32, 32, 3), np.uint8)])
print(classifier.engine.name, classifier.engine.precision, len(prediction.top_k(3)))
"""

_WITHOUT_OPENVINO = """
import sys
sys.modules["openvino"] = None
import model
print(model.load(sys.argv[1], device="cpu").engine.name)
try:
    model.load(sys.argv[1], engine="openvino")
except model.EngineError as error:
    print(error)
"""


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


def parts(outputs: Outputs) -> list[NDArray[np.float32]]:
    return [part for part in outputs if part is not None]


@pytest.fixture
def copied(int8_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(int8_bundle, tmp_path / "copy")


def outputs_of(model: openvino.Model, pixels: NDArray[np.uint8], **options: str) -> dict[str, NDArray[np.float32]]:
    """What a model returns, by the names of its outputs."""
    found = openvino.Core().compile_model(model, "CPU", options)({"pixels": pixels})
    return {next(iter(output.names)): value for output, value in found.items()}


def test_a_converted_network_returns_the_networks_own_numbers(
    tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec
) -> None:
    net = load_network(open_bundle(tiny_bundle)).eval()
    found = outputs_of(converted(net, spec), pixels, INFERENCE_PRECISION_HINT="f32")
    expected = TorchEngine(net, spec, device="cpu", precision="float32").run(pixels)
    assert found.keys() == {"logits", "features", "maps"}
    for name, part in expected._asdict().items():
        np.testing.assert_allclose(found[name], part, atol=1e-3, err_msg=name)
    assert np.abs(maps_of(expected)).max() > 0.01


@pytest.mark.parametrize("net", [PlainCNN(), MixedNetwork()], ids=["plain", "mixed"])
@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
def test_a_network_of_other_layers_is_converted_quantised_and_run(
    net: Network, int8: bool, pixels: NDArray[np.uint8], spec: InputSpec, tmp_path: Path
) -> None:
    model = converted(net.eval(), spec)
    if int8:
        model = quantized(model, np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), np.uint8), spec)
    openvino.save_model(model, tmp_path / "openvino.xml")
    found = OpenVinoEngine(tmp_path / "openvino.xml", 32, int8=int8).run(pixels)
    expected = TorchEngine(net, spec, device="cpu", precision="float32").run(pixels)
    assert (found.maps is None) is (expected.maps is None)
    for one, other in zip(parts(found), parts(expected), strict=True):
        assert one.dtype == np.float32
        assert one.shape == other.shape
        assert np.abs(one - other).max() < (0.3 if int8 else 0.05) * np.abs(other).max()


def test_the_maps_do_not_change_the_logits_and_features_of_int8(
    tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec
) -> None:
    model = converted(load_network(open_bundle(tiny_bundle)).eval(), spec)
    without = model.clone()
    without.remove_result(without.output("maps").get_node())
    images = np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), np.uint8)
    before, after = (outputs_of(quantized(each, images, spec), pixels) for each in (without, model))
    assert after.keys() - before.keys() == {"maps"}
    for name in ("logits", "features"):  # the kernels may differ, and then some values by a level of 8 bits
        np.testing.assert_allclose(before[name], after[name], atol=0.02 * np.abs(after[name]).max())


def test_the_maps_of_int8_are_computed_in_floating_point_from_the_quantised_features(
    tiny_bundle: Path, spec: InputSpec
) -> None:
    net = load_network(open_bundle(tiny_bundle)).eval()
    images = np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), np.uint8)
    model = quantized(converted(net, spec), images, spec)
    convolution = model.output("maps").get_node().input_value(0).get_node()
    assert convolution.get_type_name() == "Convolution"
    features, kernels = (value.get_node().get_type_name() for value in convolution.input_values())
    assert features == "FakeQuantize"
    assert kernels != "FakeQuantize"


def test_the_maps_and_the_bias_sum_to_the_logits(int8_bundle: Path, float16_bundle: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (70, 32, 32, 3), np.uint8)
    for folder in (int8_bundle, float16_bundle):
        bundle = open_bundle(folder)
        net: Any = load_network(bundle)
        bias = net.fc.bias.detach().numpy()
        out = choose(bundle, engine="openvino").run(pixels)
        logits, maps = out.logits, maps_of(out)
        assert maps.shape == (70, 10, 4, 4)
        np.testing.assert_allclose(maps.sum((2, 3)) + bias, logits, atol=0.02 * np.abs(logits).max())
        assert np.abs(maps).max() > 0.02


def test_the_maps_have_the_size_of_the_last_stage() -> None:
    spec = InputSpec(resize=80, crop=72, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    for stem, side in (("cifar", 9), ("imagenet", 3)):
        net = build("resnet50", num_classes=10, width=4, stem=stem).eval()
        pixels = np.random.default_rng(4).integers(0, 256, (2, 72, 72, 3), np.uint8)
        found = outputs_of(converted(net, spec), pixels, INFERENCE_PRECISION_HINT="f32")
        expected = maps_of(TorchEngine(net, spec, device="cpu", precision="float32").run(pixels))
        assert expected.shape == (2, 10, side, side)
        np.testing.assert_allclose(found["maps"], expected, atol=1e-3 * np.abs(expected).max())


def test_a_model_without_an_output_that_is_needed_is_refused(copied: Path, spec: InputSpec) -> None:
    bundle = open_bundle(copied)
    model_without = converted(load_network(bundle).eval(), spec)
    model_without.remove_result(model_without.output("features").get_node())
    openvino.save_model(model_without, copied / OPENVINO_FILES[0])
    hashes = {name: hashlib.sha256((copied / name).read_bytes()).hexdigest() for name in OPENVINO_FILES}
    update_bundle(copied, {}, bundle.card.model_copy(update={"files": {**bundle.card.files, **hashes}}))
    with pytest.raises(
        IntegrityError, match=r"openvino\.xml has no output features: run python -m model\.quantize again"
    ):
        model.load(copied)


def test_int8_is_close_but_is_not_float32(int8_bundle: Path, pixels: NDArray[np.uint8]) -> None:
    bundle = open_bundle(int8_bundle)
    engine = choose(bundle, device="cpu")
    assert isinstance(engine, OpenVinoEngine)
    assert isinstance(engine, Engine)
    assert (engine.name, engine.device, engine.precision) == ("openvino", "cpu", "int8")
    found = engine.run(pixels)
    expected = TorchEngine(load_network(bundle), bundle.card.input, device="cpu", precision="float32").run(pixels)
    for one, other in zip(parts(found), parts(expected), strict=True):
        assert one.dtype == np.float32
        assert one.shape == other.shape
        assert 1e-5 < np.abs(one - other).max() < 0.3 * np.abs(other).max()


def test_float16_runs_in_the_cpus_own_precision(float16_bundle: Path, pixels: NDArray[np.uint8]) -> None:
    bundle = open_bundle(float16_bundle)
    engine = choose(bundle)
    assert engine.name == "openvino"
    assert engine.precision in {"bfloat16", "float32"}
    expected = (
        TorchEngine(load_network(bundle), bundle.card.input, device="cpu", precision="float32").run(pixels).logits
    )
    assert np.abs(engine.run(pixels).logits - expected).max() < 0.05 * np.abs(expected).max()


def test_the_outputs_of_an_image_do_not_depend_on_its_batch(int8_bundle: Path) -> None:
    engine = choose(open_bundle(int8_bundle), engine="openvino")
    pixels = np.random.default_rng(1).integers(0, 256, (37, 32, 32, 3), np.uint8)
    together = engine.run(pixels)
    alone = [parts(engine.run(pixels[i : i + 1])) for i in range(37)]
    for rows, expected in zip(zip(*alone, strict=True), parts(together), strict=True):
        np.testing.assert_allclose(np.concatenate(rows), expected, atol=0.02 * np.abs(expected).max())


def test_a_batch_of_any_size_gets_its_own_rows(int8_bundle: Path) -> None:
    engine = choose(open_bundle(int8_bundle), engine="openvino")
    pixels = np.random.default_rng(2).integers(0, 256, (70, 32, 32, 3), np.uint8)
    whole = engine.run(pixels)
    for count in (*range(1, 36), 64, 65):
        found = engine.run(pixels[:count])
        for one, other in zip(parts(found), parts(whole), strict=True):
            assert one.shape == other[:count].shape
            # The kernels of another size may round some values to the next level of 8 bits, so each row is compared
            # with all others.
            distances = np.abs(one.reshape(count, 1, -1) - other.reshape(1, 70, -1)).mean(axis=-1)
            assert distances.argmin(axis=1).tolist() == list(range(count))
            assert distances.min(axis=1).max() < 0.01 * np.abs(other).max()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_sizes_of_batches(int8_bundle: Path) -> None:
    program = """
import sys
import numpy as np
import model
engine = model.load(sys.argv[1], threads=1).engine
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
engine.run(np.zeros((65, 32, 32, 3), np.uint8))
before = resident()
for count in range(1, 65):
    engine.run(np.zeros((count, 32, 32, 3), np.uint8))
print(resident() - before)
"""
    assert int(printed(program, int8_bundle)) < 20_000, "kilobytes"


def test_outputs_outlive_the_next_batch(int8_bundle: Path, pixels: NDArray[np.uint8]) -> None:
    engine = choose(open_bundle(int8_bundle), engine="openvino")
    first = engine.run(pixels)
    kept = [part.copy() for part in parts(first)]
    engine.run(255 - pixels)
    for part, copy in zip(parts(first), kept, strict=True):
        np.testing.assert_array_equal(part, copy)


def printed(program: str, bundle: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program, bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_neither_imports_nor_needs_torch(int8_bundle: Path) -> None:
    assert printed(_WITHOUT_TORCH, int8_bundle) == "openvino int8 3\n"


def test_if_it_is_not_installed_auto_is_torch_and_openvino_is_an_engine_error(int8_bundle: Path) -> None:
    chosen, refused = printed(_WITHOUT_OPENVINO, int8_bundle).splitlines()
    assert chosen == "torch"
    assert refused.startswith("the engine 'openvino' is not installed (")


def test_the_error_for_a_bundle_without_an_openvino_model_says_how_to_add_one(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"no OpenVINO model: add one with python -m model\.quantize"):
        model.load(tiny_bundle, engine="openvino")


def test_auto_is_torch_for_a_bundle_without_an_openvino_model(tiny_bundle: Path) -> None:
    assert model.load(tiny_bundle, device="cpu").engine.name == "torch"


def test_torch_can_be_chosen_for_a_bundle_with_an_openvino_model(int8_bundle: Path) -> None:
    assert model.load(int8_bundle, engine="torch", device="cpu").engine.name == "torch"


def test_it_has_no_cuda(int8_bundle: Path) -> None:
    with pytest.raises(EngineError, match="the engine 'openvino' runs on the CPU"):
        model.load(int8_bundle, engine="openvino", device="cuda")


@pytest.mark.parametrize("name", OPENVINO_FILES)
def test_an_altered_model_is_not_loaded(copied: Path, name: str) -> None:
    with (copied / name).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(IntegrityError, match=f"{name} does not have the SHA-256 on its card"):
        model.load(copied)


def test_a_file_that_openvino_cannot_read_is_an_integrity_error(copied: Path) -> None:
    contents = b"<net/>"
    (copied / "openvino.xml").write_bytes(contents)
    card = read_card(copied / CARD_FILE)
    digest = hashlib.sha256(contents).hexdigest()
    update_bundle(copied, {}, card.model_copy(update={"files": {**card.files, "openvino.xml": digest}}))
    with pytest.raises(IntegrityError, match="cannot be run by OpenVINO"):
        model.load(copied)


def test_a_model_that_returns_other_numbers_fails_its_self_test(copied: Path) -> None:
    card = read_card(copied / CARD_FILE)
    assert card.openvino is not None
    test = card.openvino.self_test
    wrong = test.model_copy(update={"logits": [[-value for value in row] for row in test.logits]})
    openvino_of_another = card.openvino.model_copy(update={"self_test": wrong})
    update_bundle(copied, {}, card.model_copy(update={"openvino": openvino_of_another}))
    with pytest.raises(IntegrityError, match="failed in its logits on openvino"):
        model.load(copied)
    assert model.load(copied, engine="torch", device="cpu"), "torch has its own self-test"


def test_the_number_of_threads_is_set(int8_bundle: Path) -> None:
    engine = choose(open_bundle(int8_bundle), engine="openvino", threads=1)
    assert isinstance(engine, OpenVinoEngine)
    assert engine.threads == 1
