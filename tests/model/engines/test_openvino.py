import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray

import model
from model.bundle import CARD_FILE, open_bundle, update_bundle
from model.card import OPENVINO_FILES, InputSpec, read_card
from model.engines.base import Engine, choose
from model.engines.openvino import OpenVinoEngine, cheapest_passes
from model.engines.torch import TorchEngine, load_network
from model.errors import EngineError, IntegrityError
from model.nets.zoo import build
from model.training.quantize import converted, quantized, with_maps

_WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "safetensors", "nncf"):
    sys.modules[name] = None  # to import it fails
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


@pytest.fixture
def copied(int8_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(int8_bundle, tmp_path / "copy")


def test_the_converted_network_gives_the_networks_own_numbers(
    tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec
) -> None:
    net = load_network(open_bundle(tiny_bundle)).eval()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    model = with_maps(converted(net, spec), net)
    found = openvino.Core().compile_model(model, "CPU", options)({"pixels": pixels})
    expected = TorchEngine(net, spec, device="cpu", precision="float32").run(pixels)
    for name, part in expected._asdict().items():
        np.testing.assert_allclose(found[name], part, atol=1e-3, err_msg=name)
    assert np.abs(expected.maps).max() > 0.01


def test_the_maps_leave_logits_and_features_of_int8_as_they_are(
    tiny_bundle: Path, pixels: NDArray[np.uint8], spec: InputSpec
) -> None:
    net = load_network(open_bundle(tiny_bundle)).eval()
    seen = np.random.default_rng(1).integers(0, 256, (100, 32, 32, 3), np.uint8)
    without = quantized(converted(net, spec), seen, spec)
    results = [without.clone(), with_maps(without, net)]
    before, after = (openvino.Core().compile_model(each, "CPU")({"pixels": pixels}) for each in results)
    for name in ("logits", "features"):
        np.testing.assert_array_equal(before[name], after[name])
    (maps,) = (output for output in without.outputs if "maps" in output.names)
    convolution = maps.get_node().input_value(0).get_node()
    assert convolution.input_value(1).get_node().get_type_name() == "Constant", "kernels in floating point"


def test_the_maps_and_the_bias_sum_to_the_logits(int8_bundle: Path, float16_bundle: Path) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (70, 32, 32, 3), np.uint8)
    for folder, share in ((int8_bundle, 0.05), (float16_bundle, 0.02)):
        bundle = open_bundle(folder)
        bias = load_network(bundle).fc.bias.detach().numpy()
        logits, _, maps = choose(bundle, engine="openvino").run(pixels)
        assert maps.shape == (70, 10, 4, 4)
        np.testing.assert_allclose(maps.sum((2, 3)) + bias, logits, atol=share * np.abs(logits).max())
        assert np.abs(maps).max() > share


def test_the_maps_have_the_size_of_the_last_stage() -> None:
    spec = InputSpec(resize=80, crop=72, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    for stem, side in (("cifar", 9), ("imagenet", 3)):
        net = build("resnet50", num_classes=10, width=4, stem=stem).eval()
        model = with_maps(converted(net, spec), net)
        pixels = np.random.default_rng(4).integers(0, 256, (2, 72, 72, 3), np.uint8)
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        found = openvino.Core().compile_model(model, "CPU", options)({"pixels": pixels})
        expected = TorchEngine(net, spec, device="cpu", precision="float32").run(pixels).maps
        assert expected.shape == (2, 10, side, side)
        np.testing.assert_allclose(found["maps"], expected, atol=1e-3 * np.abs(expected).max())


def test_a_model_without_maps_is_refused_in_a_sentence(copied: Path, spec: InputSpec) -> None:
    bundle = open_bundle(copied)
    openvino.save_model(converted(load_network(bundle).eval(), spec), copied / OPENVINO_FILES[0])
    hashes = {name: hashlib.sha256((copied / name).read_bytes()).hexdigest() for name in OPENVINO_FILES}
    update_bundle(copied, {}, bundle.card.model_copy(update={"files": {**bundle.card.files, **hashes}}))
    with pytest.raises(IntegrityError, match=r"openvino\.xml does not give maps: run python -m model\.quantize again"):
        model.load(copied)


def test_int8_is_close_but_is_not_float32(int8_bundle: Path, pixels: NDArray[np.uint8]) -> None:
    bundle = open_bundle(int8_bundle)
    engine = choose(bundle, device="cpu")
    assert isinstance(engine, OpenVinoEngine)
    assert isinstance(engine, Engine)
    assert (engine.name, engine.device, engine.precision) == ("openvino", "cpu", "int8")
    found = engine.run(pixels)
    expected = TorchEngine(load_network(bundle), bundle.card.input, device="cpu", precision="float32").run(pixels)
    for one, other in zip(found, expected, strict=True):
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


def test_a_pictures_outputs_do_not_depend_on_its_batch(int8_bundle: Path) -> None:
    engine = choose(open_bundle(int8_bundle), engine="openvino")
    pixels = np.random.default_rng(1).integers(0, 256, (37, 32, 32, 3), np.uint8)
    together = engine.run(pixels)
    alone = [engine.run(pixels[i : i + 1]) for i in range(37)]
    for index, name in enumerate(("logits", "features", "maps")):
        rows = np.concatenate([out[index] for out in alone])
        np.testing.assert_allclose(rows, together[index], atol=0.02 * np.abs(together[index]).max(), err_msg=name)


def test_every_size_of_batch_gets_its_own_rows_and_no_more(int8_bundle: Path) -> None:
    engine = choose(open_bundle(int8_bundle), engine="openvino")
    pixels = np.random.default_rng(2).integers(0, 256, (70, 32, 32, 3), np.uint8)
    whole = engine.run(pixels)
    for count in (*range(1, 36), 64, 65):
        found = engine.run(pixels[:count])
        for one, other in zip(found, whole, strict=True):
            assert one.shape == other[:count].shape
            np.testing.assert_allclose(one, other[:count], atol=0.02 * np.abs(other).max())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("count", "passes"),
    [(1, (1,)), (3, (2, 1)), (7, (8,)), (13, (8, 4, 1)), (15, (16,)), (18, (16, 2)), (31, (32,)), (70, (32, 32, 4, 2))],
)
def test_a_batch_is_run_in_the_cheapest_passes(count: int, passes: tuple[int, ...]) -> None:
    assert cheapest_passes(count) == passes


def test_passes_hold_the_whole_batch_and_only_the_last_is_padded() -> None:
    for count in range(1, 2000):
        passes = cheapest_passes(count)
        assert sum(passes[:-1]) < count <= sum(passes)


def test_memory_does_not_grow_with_the_sizes_of_batches(int8_bundle: Path) -> None:
    program = """
import sys
import numpy as np
import model
engine = model.load(sys.argv[1], threads=1).engine
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
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
    kept = [part.copy() for part in first]
    engine.run(255 - pixels)
    for part, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(part, copy)


def printed(program: str, bundle: Path) -> str:
    done = subprocess.run([sys.executable, "-c", program, bundle], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_neither_imports_nor_needs_torch(int8_bundle: Path) -> None:
    assert printed(_WITHOUT_TORCH, int8_bundle) == "openvino int8 3\n"


def test_where_it_is_not_installed_auto_takes_torch_and_to_ask_for_it_is_an_engine_error(int8_bundle: Path) -> None:
    chosen, refused = printed(_WITHOUT_OPENVINO, int8_bundle).splitlines()
    assert chosen == "torch"
    assert refused.startswith("the engine 'openvino' is not installed (")


def test_a_bundle_without_a_model_for_it_says_how_to_get_one(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"no OpenVINO model: add one with python -m model\.quantize"):
        model.load(tiny_bundle, engine="openvino")


def test_auto_takes_torch_for_a_bundle_without_a_model_for_it(tiny_bundle: Path) -> None:
    assert model.load(tiny_bundle, device="cpu").engine.name == "torch"


def test_torch_can_be_asked_for_all_the_same(int8_bundle: Path) -> None:
    assert model.load(int8_bundle, engine="torch", device="cpu").engine.name == "torch"


def test_it_has_no_cuda(int8_bundle: Path) -> None:
    with pytest.raises(EngineError, match="the engine 'openvino' runs on the CPU"):
        model.load(int8_bundle, engine="openvino", device="cuda")


@pytest.mark.parametrize("name", OPENVINO_FILES)
def test_a_model_that_was_tampered_with_is_not_loaded(copied: Path, name: str) -> None:
    with (copied / name).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(IntegrityError, match=f"{name} does not have the SHA-256 on its card"):
        model.load(copied)


def test_what_openvino_cannot_read_is_not_served(copied: Path) -> None:
    contents = b"<net/>"
    (copied / "openvino.xml").write_bytes(contents)
    card = read_card(copied / CARD_FILE)
    digest = hashlib.sha256(contents).hexdigest()
    update_bundle(copied, {}, card.model_copy(update={"files": {**card.files, "openvino.xml": digest}}))
    with pytest.raises(IntegrityError, match="cannot be run by OpenVINO"):
        model.load(copied)


def test_a_model_that_gives_other_numbers_fails_its_self_test(copied: Path) -> None:
    card = read_card(copied / CARD_FILE)
    assert card.openvino is not None
    test = card.openvino.self_test
    wrong = test.model_copy(update={"logits": [[-value for value in row] for row in test.logits]})
    openvino_of_another = card.openvino.model_copy(update={"self_test": wrong})
    update_bundle(copied, {}, card.model_copy(update={"openvino": openvino_of_another}))
    with pytest.raises(IntegrityError, match="failed in its logits on openvino"):
        model.load(copied)
    assert model.load(copied, engine="torch", device="cpu"), "which has its own"


def test_the_number_of_threads_is_taken_over(int8_bundle: Path) -> None:
    engine = choose(open_bundle(int8_bundle), engine="openvino", threads=1)
    assert isinstance(engine, OpenVinoEngine)
    assert engine.threads == 1
