"""Test a finished run, fit the constants of its card and write its bundle."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from model.bundle import CARD_FILE, to_json, write_bundle
from model.calibration import OutOfDistributionScore, softmax
from model.card import (
    FORMAT_VERSION,
    WEIGHTS_FILE,
    Architecture,
    Calibration,
    Complexity,
    Metrics,
    ModelCard,
    OutOfDistribution,
    SelfTest,
    Training,
)
from model.classifier import SELF_TEST_IMAGES, self_test_pixels
from model.engines.base import DeviceName, Engine
from model.engines.torch import TorchEngine
from model.nets.base import count_multiply_adds, count_parameters
from model.nets.zoo import build
from model.training.biases import correct_biases
from model.training.calibrate import fit, observe
from model.training.data import DataSet
from model.training.evaluate import Assessment, Progress, assess, mistakes, reliability
from model.training.loop import Run, weights_of_classes
from model.training.report.readme import README_FILE, readme

_SELF_TEST_SEED = 10
# The differences of bfloat16 engines are ten times smaller, those of other weights are larger.
_SELF_TEST_TOLERANCE = 0.1


def export(
    run: Run,
    data: DataSet,
    folder: Path,
    *,
    name: str,
    device: DeviceName = "auto",
    progress: Progress | None = None,
) -> ModelCard:
    """Correct the biases of the classes, test the network once and write its bundle.

    The tested network is the one in the bundle: the weights after rounding for storage, in float32 arithmetic.

    Args:
        run: finished.
        data: held-out images for the constants, test images for the metrics.
        folder: of the bundle; must not exist.
        name: of the bundle.
        device: for the test; "auto" uses CUDA if available.
        progress: called after each batch of the test.

    Raises:
        SaveError: the folder exists or cannot be written. No partial folder remains.
    """
    from model.training.report.plots import plots  # matplotlib writes a cache of fonts into the home folder

    recipe = run.recipe
    arguments = recipe.network_arguments(len(data.labels))
    net = build(recipe.network, **arguments)
    net.load_state_dict(to_storage_dtype(run.net.state_dict()))
    complexity = Complexity(parameters=count_parameters(net), multiply_adds=count_multiply_adds(net, recipe.crop))
    spec = recipe.input_spec()
    images = observe(TorchEngine(net, spec, device=device, precision="float32"), spec, data)
    class_weights = weights_of_classes(data.train.labels, len(data.labels), recipe.balance)
    biases = correct_biases(net, images, class_weights)
    if biases is not None:
        images = images._replace(out=images.out._replace(logits=images.out.logits + biases))
    weights = to_safetensors(to_storage_dtype(net.state_dict()))
    engine = TorchEngine(net, spec, device=device, precision="float32")
    exposed = run.about.get("outliers") is not None
    calibration, out_of_distribution, reference = fit(images, outliers=exposed)
    assessment = assess(engine, spec, calibration, out_of_distribution, data.test, progress=progress)

    kept = "after the last epoch"
    if recipe.keep != "last":
        kept = f"with the weights of epoch {run.epoch} of {len(run.history)}"
    card = ModelCard(
        format_version=FORMAT_VERSION,
        name=name,
        architecture=Architecture(name=recipe.network, arguments=arguments),
        labels=list(data.labels),
        input=spec,
        complexity=complexity,
        training=Training(
            recipe=json.loads(json.dumps(asdict(recipe))),  # as after reading the card
            epochs=len(run.history),
            pictures=len(data.train),
            dataset_md5=dict(data.md5),
            data=data.about(),
            seconds=round(run.seconds, 1),
            class_biases=None if biases is None else [round(float(added), 4) for added in biases],
            **run.about,
        ),
        metrics=metrics_of(
            assessment,
            data.labels,
            files=data.test_files,
            measured=f"once, {kept}, one view, float32 on {engine.device}",
        ),
        calibration=calibration,
        out_of_distribution=out_of_distribution,
        reference=reference,
        files={WEIGHTS_FILE: hashlib.sha256(weights).hexdigest()},
        self_test=expected_of(engine, spec.crop, calibration, out_of_distribution),
        openvino=None,
    )
    files = {
        CARD_FILE: to_json(card).encode(),
        WEIGHTS_FILE: weights,
        README_FILE: readme(card, folder=folder).encode(),
        **plots(card.labels, run.history, assessment, watched=recipe.watch),
    }
    write_bundle(folder, files)
    return card


def metrics_of(assessment: Assessment, labels: Sequence[str], *, files: Sequence[str] = (), measured: str) -> Metrics:
    """The metrics of a card.

    Args:
        assessment: on the test set.
        labels: class names.
        files: path of each test image, or "" if it has no file of its own; empty if none has.
        measured: conditions of the measurement, for people.
    """
    scores = assessment.scores
    return Metrics(
        top1=scores.top1,
        nll=scores.nll,
        ece=scores.ece,
        ece_uncalibrated=assessment.uncalibrated.ece,
        confusion=scores.confusion.tolist(),
        reliability=reliability(scores),
        mistakes=mistakes(scores, labels, files=files),
        auroc=assessment.auroc,
        accepted=assessment.accepted,
        other=assessment.other,
        pictures=scores.images,
        measured=measured,
    )


def expected_of(
    engine: Engine, crop: int, calibration: Calibration, out_of_distribution: OutOfDistribution
) -> SelfTest:
    """The self-test with the outputs of this engine as the expected ones.

    Args:
        engine: to run.
        crop: side of its images, pixels.
        calibration: of the card.
        out_of_distribution: of the card.
    """
    out = engine.run(self_test_pixels(_SELF_TEST_SEED, SELF_TEST_IMAGES, crop))
    ood_score = OutOfDistributionScore(out_of_distribution)
    scores = ood_score.of_views(out.logits, out.features)
    return SelfTest(
        seed=_SELF_TEST_SEED,
        logits=out.logits.tolist(),
        scores=scores.tolist(),
        probabilities=softmax(out.logits, calibration.temperature, calibration.exponent).tolist(),
        in_distribution=ood_score.fractions(scores).tolist(),
        tolerance=_SELF_TEST_TOLERANCE,
    )


def to_storage_dtype(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict for storage: weights in float16; vectors (biases, scales, normalisation) and integers as they are.

    A scale of shape [C, 1, 1] is a vector, too.
    """
    return {
        key: tensor.detach().cpu().to(torch.float16 if _is_weight(tensor) else tensor.dtype).contiguous()
        for key, tensor in state.items()
    }


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and sum(length > 1 for length in tensor.shape) > 1
