"""The command tenfold export, and the functions behind it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

import model
from model.bundle import open_bundle
from model.card import Calibration
from model.classifier import self_test_pixels
from model.commands.export import main
from model.engines.torch import TorchEngine, load_network
from model.errors import SaveError
from model.nets.zoo import BUILDERS
from model.training import data as datasets
from model.training.data import load_cifar10_test
from model.training.evaluate import outputs
from model.training.exchange import to_onnx, write
from model.training.export import export
from model.training.loop import Run, describe
from model.training.recipes import recipe_named
from tests.app.running import ROOT
from tests.conftest import CPU
from tests.model.commands.inprocess import invoke
from tests.model.nets.plain import PlainCNN

PIXELS = self_test_pixels(3, 6, 32)


class Branching(PlainCNN):
    """Its course depends on the values of the images, which no graph can express."""

    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x if x.is_meta or x.sum().item() > 0 else x + 1)


@pytest.fixture
def branching() -> Iterator[str]:
    BUILDERS["branching"] = Branching
    yield "branching"
    del BUILDERS["branching"]


@pytest.fixture(scope="module")
def onnx_file(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "tiny.onnx"
    result = invoke(main, tiny_bundle, "--format", "onnx", "--out", path)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"wrote {path}: pixels uint8[N, 32, 32, 3] to logits, features and maps\n"
    return path


def test_the_file_states_its_inputs_outputs_and_labels(onnx_file: Path, tiny_bundle: Path) -> None:
    session = onnxruntime.InferenceSession(onnx_file)
    (pixels,) = session.get_inputs()
    assert (pixels.name, pixels.type, pixels.shape) == ("pixels", "tensor(uint8)", ["batch", 32, 32, 3])
    assert {output.name: output.shape for output in session.get_outputs()} == {
        "logits": ["batch", 10], "features": ["batch", 64], "maps": ["batch", 10, 4, 4]
    }  # fmt: skip
    card = open_bundle(tiny_bundle).card
    about = session.get_modelmeta().custom_metadata_map
    assert (about["name"], about["weights_sha256"]) == ("tiny", card.files["model.safetensors"])
    assert json.loads(about["labels"]) == card.labels
    assert json.loads(about["input"]) == card.input.model_dump(mode="json")
    assert float(about["temperature"]) == card.calibration.temperature


def test_the_file_has_the_constants_of_the_calibration(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    calibration = Calibration(temperature=1.5, exponent=0.25, views=1, pictures=9)
    contents = to_onnx(replace(bundle, card=bundle.card.model_copy(update={"calibration": calibration})))
    about = onnxruntime.InferenceSession(contents).get_modelmeta().custom_metadata_map
    assert (float(about["temperature"]), float(about["exponent"])) == (1.5, 0.25)


def test_onnx_runtime_gives_the_same_first_class(onnx_file: Path, tiny_bundle: Path) -> None:
    session = onnxruntime.InferenceSession(onnx_file)
    expected = model.load(tiny_bundle, engine="torch", device="cpu").engine.run(PIXELS)
    for count in (1, 6):
        logits, maps = session.run(["logits", "maps"], {"pixels": PIXELS[:count]})
        np.testing.assert_array_equal(logits.argmax(1), expected.logits[:count].argmax(1))
        assert maps.shape == (count, 10, 4, 4)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shipped_weights_have_the_same_first_class_of_1000_images(cifar10_root: Path, tmp_path: Path) -> None:
    bundle, path = ROOT / "weights" / "resnet18-cifar10", tmp_path / "model.onnx"
    assert invoke(main, bundle, "--out", path).exit_code == 0
    pixels = load_cifar10_test(cifar10_root)[:1000].pixels.numpy()
    (logits,) = onnxruntime.InferenceSession(path).run(["logits"], {"pixels": pixels})
    opened = open_bundle(bundle)
    reference = TorchEngine(load_network(opened), opened.card.input, device="cpu", precision="float32")
    expected = outputs(reference, opened.card.input, pixels).logits
    # Measured: all of them. Another CPU may round a tie in another way.
    assert (logits.argmax(1) == expected.argmax(1)).mean() >= 0.999


def test_torch_export_gives_the_same_logits(tiny_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.pt2"
    assert invoke(main, tiny_bundle, "--format", "torch", "--out", path).exit_code == 0
    program = torch.export.load(path).module()
    logits, _, maps = program(torch.from_numpy(PIXELS))
    expected = model.load(tiny_bundle, engine="torch", device="cpu").engine.run(PIXELS)
    np.testing.assert_array_equal(logits.detach().numpy().argmax(1), expected.logits.argmax(1))
    assert maps.shape == (6, 10, 4, 4)


def test_adding_the_model_to_a_bundle_changes_its_version(tiny_bundle: Path, onnx_bundle: Path) -> None:
    before, card = open_bundle(tiny_bundle).card, open_bundle(onnx_bundle).card
    assert card.model_copy(update={"onnx": None, "files": before.files}) == before, "only these fields change"
    assert card.version != before.version
    assert set(card.files) == {*before.files, "model.onnx"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{bundle}", "--out", "{tmp}/there"], "there exists: choose another --out, or move it away"),
        (["{bundle}", "--out", "{tmp}/none/tiny.pt2", "--format", "torch"], "cannot write .*tiny.pt2 "),
        (["{bundle}", "--add", "--out", "{tmp}/new"], "--add is for --format onnx, without --out"),
        (["{bundle}", "--add", "--format", "torch"], "--add is for --format onnx, without --out"),
        (["{tmp}"], "name a weights folder that contains a card.json"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    arguments: list[str], message: str, tiny_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").write_text("")
    result = invoke(main, *(argument.format(bundle=tiny_bundle, tmp=tmp_path) for argument in arguments))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_network_that_cannot_be_exported_leaves_the_bundle_unchanged(branching: str, tmp_path: Path) -> None:
    recipe = recipe_named("smoke").with_network(branching)
    data = datasets.load("synthetic", Path(), holdout=recipe.holdout, limit=40)
    history = [{"epoch": 1, "side": 32, "lr": 0.1, "train_loss": 2.5, "loss": 2.4, "accuracy": 0.1, "seconds": 1.0}]
    run = Run(recipe, Branching(), history, seconds=1.0, about=describe(CPU, seed=0))
    export(run, data, tmp_path / "branching", name="branching", device="cpu")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = invoke(main, tmp_path / "branching", "--add")
    assert result.exit_code == 1
    assert re.fullmatch(r"error: branching cannot be exported with ONNX \(\w+: .*: use another format\n", result.stderr)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_file_is_written_completely_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "file", b"contents")
    assert (tmp_path / "file").read_bytes() == b"contents"
    with pytest.raises(SaveError, match="exists: choose another --out"):
        write(tmp_path / "file", b"other")
    with pytest.raises(SaveError, match="cannot write"):
        write(tmp_path / "file" / "below", b"other")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_onnx_the_message_names_the_extra(tiny_bundle: Path) -> None:
    code = f"""
import sys
sys.modules["onnx"] = None
import typer
from model.commands.export import main
sys.argv = ["export", {str(tiny_bundle)!r}]
typer.run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: the package onnx is not installed: run make install, or install tenfold[onnx]\n",
    )
