"""Writes the network of a bundle in formats of other programs: ONNX, and torch.export."""

import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from model.bundle import Bundle, open_bundle, update_bundle
from model.card import ONNX_FILE, WEIGHTS_FILE, InputSpec, ModelCard, Onnx
from model.classifier import self_test_pixels
from model.engines.base import Outputs
from model.engines.onnx import OnnxEngine
from model.engines.torch import load_network
from model.errors import SaveError, TrainingError, cannot_write
from model.nets.base import Network
from model.training.export import expected_of
from model.training.pixels import PixelNetwork

# Largest difference between an output of the exported network and PyTorch's, relative to the largest one.
_TOLERANCE = 1e-3
# Not the size of the example, so that a fixed batch size would be noticed.
_TEST_IMAGES = 5


def to_onnx(bundle: Bundle) -> bytes:
    """The bundle's network as an ONNX model in float32, tested in ONNX Runtime.

    The input is "pixels", uint8[batch, crop, crop, 3], RGB after the test transform. The normalisation is in the model.
    The outputs are "logits", "features" and, if the network has them, "maps", as in `Outputs`. The metadata has the
    name, the labels, the temperature and its exponent of the card, its test transform as `input`, and the hash of the
    weights.

    Raises:
        TrainingError: the network cannot be exported, or ONNX Runtime computes something else.
    """
    card, net = bundle.card, load_network(bundle).eval()
    try:
        model = onnx_model(net, card.input)
    except Exception as error:
        raise _failed(bundle, "ONNX", error) from error
    about = {
        "name": card.name,
        "weights_sha256": card.files[WEIGHTS_FILE],
        "labels": json.dumps(card.labels),
        "temperature": str(card.calibration.temperature),
        "exponent": str(card.calibration.exponent),
        "input": card.input.model_dump_json(),
    }
    onnx.helper.set_model_props(model, about)
    contents: bytes = model.SerializeToString()
    pixels = self_test_pixels(0, _TEST_IMAGES, card.input.crop)
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = PixelNetwork(net, card.input)(torch.from_numpy(pixels))
    for output, ours, theirs in zip(Outputs._fields, expected, session.run(None, {"pixels": pixels}), strict=False):
        if not np.abs(theirs - ours.numpy()).max() <= _TOLERANCE * ours.abs().max().item():
            raise TrainingError(
                f"ONNX Runtime computes other {output} than PyTorch for {card.name}: use another format"
            )
    return contents


def onnx_model(net: Network, spec: InputSpec) -> onnx.ModelProto:
    """A network in evaluation mode as an ONNX model with the input and the outputs of `to_onnx`, without metadata.

    Raises:
        Exception: torch.onnx cannot export the network.
    """
    whole, example = _whole(net, spec)
    with torch.inference_mode():
        names = list(Outputs._fields[: len(whole(example))])
    with _quiet():
        program: Any = torch.onnx.export(
            whole,
            (example,),
            dynamo=True,
            input_names=["pixels"],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    model: onnx.ModelProto = program.model_proto
    return model


def to_torch_export(bundle: Bundle) -> bytes:
    """The bundle's network as an archive of torch.export (.pt2), with the inputs and outputs of `to_onnx`.

    Raises:
        TrainingError: the network cannot be exported.
    """
    net, example = _whole(load_network(bundle), bundle.card.input)
    file = io.BytesIO()
    try:
        with _quiet():
            program = torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
            torch.export.save(program, file)
    except Exception as error:
        raise _failed(bundle, "torch.export", error) from error
    return file.getvalue()


def add_onnx(folder: Path) -> ModelCard:
    """Add an ONNX model to a bundle, or replace the one that it has. The engine `onnx` runs it.

    Returns:
        The new card.

    Raises:
        BundleError: the bundle is damaged.
        TrainingError: as for `to_onnx`.
        SaveError: the bundle cannot be written. It is unchanged.
    """
    bundle = open_bundle(folder)
    contents, card = with_onnx(bundle)
    update_bundle(folder, {ONNX_FILE: contents}, card)
    return card


def with_onnx(bundle: Bundle) -> tuple[bytes, ModelCard]:
    """An ONNX model of a bundle, and its card with the entry of that model.

    Raises:
        TrainingError: as for `to_onnx`.
    """
    card, contents = bundle.card, to_onnx(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / ONNX_FILE
        path.write_bytes(contents)
        test = expected_of(OnnxEngine(path), card.input.crop, card.calibration, card.out_of_distribution)
    files = {**card.files, ONNX_FILE: hashlib.sha256(contents).hexdigest()}
    return contents, card.model_copy(update={"onnx": Onnx(self_test=test), "files": files})


def require_new(path: Path) -> None:
    """Raises:
    SaveError: the file exists.
    """
    if path.exists():
        raise SaveError(f"{path} exists: choose another --out, or move it away")


def write(path: Path, contents: bytes) -> None:
    """Write a new file, completely or not at all.

    Raises:
        SaveError: the file exists or cannot be written. No partial file remains.
    """
    require_new(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            partial.write_bytes(contents)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise SaveError(cannot_write(path, error, "choose another --out")) from error


def _whole(net: Network, spec: InputSpec) -> tuple[PixelNetwork, Tensor]:
    """The network with its normalisation, and an example of its input."""
    return PixelNetwork(net, spec).eval(), torch.zeros(2, spec.crop, spec.crop, 3, dtype=torch.uint8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's warnings about itself, and without the graph that it prints if it fails."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _failed(bundle: Bundle, what: str, error: BaseException) -> TrainingError:
    while error.__cause__:  # torch.onnx wraps the error of torch.export
        error = error.__cause__
    reason = str(error).strip().partition("\n")[0]
    return TrainingError(
        f"{bundle.card.architecture.name} cannot be exported with {what} ({type(error).__name__}: {reason}): "
        "use another format"
    )
