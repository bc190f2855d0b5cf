"""Adds an OpenVINO model to a bundle: in 8-bit integers if they are as accurate, else in float16."""

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import openvino
import torch
from numpy.typing import NDArray
from PIL import Image

from model.bundle import open_bundle, update_bundle
from model.card import OPENVINO_FILES, InputSpec, OpenVino
from model.engines.base import Outputs
from model.engines.openvino import OpenVinoEngine
from model.engines.torch import TorchEngine, load_network
from model.image import test_transform
from model.nets.base import Network
from model.training.data import DataSet
from model.training.evaluate import outputs, score
from model.training.export import expected_of
from model.training.pixels import PixelNetwork
from model.training.report.readme import README_FILE, readme_of

Choice = Literal["auto", "int8", "float16"]

# Number of images that the ranges of the activations are measured on, and the batch size.
_RANGE_IMAGES = 3000
_BATCH = 50
# The exact correction of biases runs the network once for each layer, so networks with more layers get the fast one.
_MAX_LAYERS_EXACT = 32


def add_openvino(
    folder: Path,
    data: DataSet,
    *,
    weights: Choice = "auto",
    max_loss: float = 0.001,
    report: Callable[[str], None] = lambda _: None,
) -> OpenVino:
    """Add an OpenVINO model to a bundle, or replace the one that it has.

    Args:
        folder: of the bundle.
        data: that the bundle was trained on.
        weights: "auto" is int8 if its held-out accuracy is high enough, else float16.
        max_loss: the largest difference of held-out accuracy, 0..1, between float32 and int8 for "auto".
        report: called with a line of text before each step and for each difference on the test images.

    Returns:
        The new entry of the card.

    Raises:
        BundleError: the bundle is damaged.
        SaveError: the bundle cannot be written. It is unchanged.
    """
    bundle = open_bundle(folder)
    card, spec = bundle.card, bundle.card.input
    # As in the export: the training images replace the held-out images if there are none.
    known = data.holdout if len(data.holdout) else data.train
    net = load_network(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / OPENVINO_FILES[0]

        def engine(model: openvino.Model, *, int8: bool) -> OpenVinoEngine:
            openvino.save_model(model, path)  # the saved file is measured: float16 where it is not int8
            return OpenVinoEngine(path, spec.crop, int8=int8)

        report("converting the network")
        model = converted(net, spec)
        reference = TorchEngine(net, spec, device="cpu", precision="float32")
        chosen, seen = None, known[:_RANGE_IMAGES].pixels.numpy()
        if weights != "float16":
            report(f"quantising it, with ranges from {len(seen):,} images")
            chosen = engine(quantized(model, seen, spec), int8=True)
        if weights == "auto" and chosen:
            before, after = (
                score(outputs(each, spec, known.pixels.numpy()).logits, known.labels.numpy()).top1
                for each in (reference, chosen)
            )
            report(f"held-out accuracy {after:.2%} of {len(known):,} images in int8, {before:.2%} in float32")
            chosen = chosen if after >= before - max_loss else None
        int8 = chosen is not None
        chosen = chosen or engine(model, int8=False)
        report(f"testing it once, on {len(data.test):,} images")
        expected, found = (outputs(each, spec, data.test.pixels.numpy()).logits for each in (reference, chosen))
        for line in differences(expected, found, data.test.labels.numpy(), card.labels):
            report(line)
        about = OpenVino(
            weights="int8" if int8 else "float16",
            pictures=len(seen) if int8 else 0,
            top1=score(found, data.test.labels.numpy()).top1,
            agreement=float((expected.argmax(1) == found.argmax(1)).mean()),
            self_test=expected_of(chosen, spec.crop, card.calibration, card.out_of_distribution),
        )
        files = {name: (path.parent / name).read_bytes() for name in OPENVINO_FILES}
    hashes = {name: hashlib.sha256(contents).hexdigest() for name, contents in files.items()}
    card = card.model_copy(update={"openvino": about, "files": {**card.files, **hashes}})
    update_bundle(folder, {**files, README_FILE: readme_of(folder, card)}, card)
    return about


def differences(
    expected: NDArray[np.float32], found: NDArray[np.float32], truth: NDArray[np.int64], labels: Sequence[str]
) -> list[str]:
    """One line for each image whose first class differs, with the image's number from 0.

    Args:
        expected: logits of the network in float32, float32[N, C].
        found: logits of the other model, float32[N, C].
        truth: the right classes, int64[N].
        labels: of the classes.
    """
    before, after = expected.argmax(1), found.argmax(1)
    return [
        f"image {index}, of class {labels[truth[index]]}: {labels[after[index]]}, in float32 {labels[before[index]]}"
        for index in np.flatnonzero(before != after)
    ]


def converted(net: Network, spec: InputSpec) -> openvino.Model:
    """The network with its normalisation: "pixels" uint8[N, crop, crop, 3] to the float32 outputs of `Outputs`.

    The output "maps" is missing if the network has no class-activation maps.
    """
    whole = PixelNetwork(net, spec).eval()
    example = torch.zeros(2, spec.crop, spec.crop, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit warns that it is deprecated
        model = openvino.convert_model(whole, example_input=example)
    model.reshape([-1, spec.crop, spec.crop, 3])
    model.input(0).set_names({"pixels"})
    for output, name in zip(model.outputs, Outputs._fields, strict=False):
        output.set_names({name})
    return model


def quantized(model: openvino.Model, pixels: NDArray[np.uint8], spec: InputSpec) -> openvino.Model:
    """The model with 8-bit weights and activations by NNCF's post-training quantisation.

    The first convolution, the classifier, which is the last matrix product, and the class-activation maps stay in
    floating point, so that the maps add up to the logits. On the shipped weights and the held-out images, the
    predictions were 0.0011 nats away from bfloat16's with the first convolution in 8 bits and ranges from 1,000 images,
    and 0.0005 nats without it and with ranges from 3,000 images, in the same time. On those of a ResNet-9 the exact
    correction of biases reduced the distance from 0.0008 to 0.0002 nats.

    The 8-bit weights are -64..64. Without VNNI, CPUs add the products of two activations, 0..255, and two weights in 16
    bits, and a sum outside of them saturates. With half of the range no sum does, so all CPUs compute the same.

    Args:
        model: as `converted` returns it.
        pixels: uint8[N, H, W, 3], images that the ranges of the activations are measured on.
        spec: of the card.
    """
    import nncf

    nncf.set_log_level(logging.ERROR)
    seen = np.stack([test_transform(Image.fromarray(image), spec) for image in pixels])
    convolutions = [node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    maps = _only_for_maps(model)
    products = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    exact = maps | {node.get_friendly_name() for node in (*convolutions[:1], *products[-1:])}
    batches = [seen[start : start + _BATCH] for start in range(0, len(seen), _BATCH)]
    result = nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,  # activations are positive after a ReLU, of both signs before
        subset_size=len(batches),
        target_device=nncf.TargetDevice.CPU,
        fast_bias_correction=len(convolutions) > _MAX_LAYERS_EXACT,
        ignored_scope=nncf.IgnoredScope(names=sorted(exact)),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )
    # The maps explain the logits, so they are computed from the same quantised features.
    for node in result.get_ordered_ops():
        for value in node.inputs() if node.get_friendly_name() in maps else ():
            for user in value.get_source_output().get_target_inputs():
                if user.get_node().get_type_name() == "FakeQuantize":
                    value.replace_source_output(user.get_node().output(0))
                    break
    return result


def _only_for_maps(model: openvino.Model) -> set[str]:
    """Names of the operations that "maps" depends on and no other output does."""
    inputs: dict[bool, set[str]] = {True: set(), False: set()}
    for output in model.outputs:
        found, pending = inputs["maps" in output.names], [output.get_node()]
        while pending:
            node = pending.pop()
            if node.get_friendly_name() not in found and node.get_type_name() != "Constant":
                found.add(node.get_friendly_name())
                pending += [value.get_node() for value in node.input_values()]
    return inputs[True] - inputs[False]
