"""From a finished run to a bundle."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from model.bundle import CARD_FILE, readable, write_bundle
from model.calibration import class_mean_cosine, in_distribution, softmax
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
from model.classifier import SELF_TEST_PICTURES, self_test_pixels
from model.engines.base import DeviceName, Engine
from model.engines.torch import TorchEngine
from model.nets.zoo import build, count_multiply_adds, count_parameters
from model.training import report
from model.training.calibrate import UNCALIBRATED, fit_out_of_distribution, fit_temperature
from model.training.data import DataSet
from model.training.evaluate import Assessment, Progress, assess, outputs, reliability
from model.training.loop import Run, network_arguments

_SELF_TEST_SEED = 10
# bfloat16 engines stay within a tenth of this, other weights do not.
_SELF_TEST_TOLERANCE = 0.1
# Training pictures that stand for the classes where none are held out.
_TYPICAL = 5000


def export(
    run: Run,
    data: DataSet,
    folder: Path,
    *,
    name: str,
    device: DeviceName = "auto",
    progress: Progress | None = None,
) -> tuple[ModelCard, Assessment]:
    """Test the run once and write its bundle to `folder`, which must not exist.

    What is tested is what ships: the weights after rounding for storage, in float32 arithmetic.

    Raises:
        SaveError: the folder exists or cannot be written; nothing is left behind.
    """
    recipe = run.recipe
    arguments = network_arguments(recipe, len(data.labels))
    state = to_storage_dtype(run.net.state_dict())
    weights = to_safetensors(state)
    net = build(recipe.network, **arguments)
    net.load_state_dict(state)
    complexity = Complexity(parameters=count_parameters(net), multiply_adds=count_multiply_adds(net, recipe.crop))
    spec = recipe.input_spec()
    engine = TorchEngine(net, spec, device=device, precision="float32")
    fitted = data.holdout if len(data.holdout) else data.train[:_TYPICAL]
    out = outputs(engine, spec, fitted.pixels.numpy())
    truth = fitted.labels.numpy()
    calibration = fit_temperature(out.logits, truth) if len(data.holdout) else UNCALIBRATED
    out_of_distribution = fit_out_of_distribution(out.features, truth, len(data.labels))
    assessment = assess(engine, spec, calibration, out_of_distribution, data.test, progress=progress)
    scores = assessment.scores

    card = ModelCard(
        format_version=FORMAT_VERSION,
        name=name,
        architecture=Architecture(name=recipe.network, arguments=arguments),
        labels=list(data.labels),
        input=spec,
        complexity=complexity,
        training=Training(
            recipe=json.loads(json.dumps(asdict(recipe))),  # as it will be read
            epochs=len(run.history),
            pictures=len(data.train),
            dataset_md5=dict(data.md5),
            seconds=round(run.seconds, 1),
            **run.about,
        ),
        metrics=Metrics(
            top1=scores.top1,
            nll=scores.nll,
            ece=scores.ece,
            ece_uncalibrated=assessment.uncalibrated.ece,
            confusion=scores.confusion.tolist(),
            reliability=reliability(scores),
            auroc=assessment.auroc,
            accepted=assessment.accepted,
            pictures=scores.images,
            measured=f"once, after the last epoch, one view, float32 on {engine.device}",
        ),
        calibration=calibration,
        out_of_distribution=out_of_distribution,
        files={WEIGHTS_FILE: hashlib.sha256(weights).hexdigest()},
        self_test=expected_of(engine, spec.crop, calibration, out_of_distribution),
        openvino=None,
    )
    files = {
        CARD_FILE: readable(card).encode(),
        WEIGHTS_FILE: weights,
        **report.files(card, run.history, assessment, watched=recipe.watch),
    }
    write_bundle(folder, files)
    return card, assessment


def expected_of(
    engine: Engine, crop: int, calibration: Calibration, out_of_distribution: OutOfDistribution
) -> SelfTest:
    """The self-test that an engine passes which gives what this one does."""
    out = engine.run(self_test_pixels(_SELF_TEST_SEED, SELF_TEST_PICTURES, crop))
    scores = class_mean_cosine(out.features, out_of_distribution)
    return SelfTest(
        seed=_SELF_TEST_SEED,
        logits=out.logits.tolist(),
        scores=scores.tolist(),
        probabilities=softmax(out.logits, calibration.temperature).tolist(),
        in_distribution=in_distribution(scores, out_of_distribution).tolist(),
        tolerance=_SELF_TEST_TOLERANCE,
    )


def to_storage_dtype(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as it is stored: weights in float16, what is of one dimension (biases, BatchNorm) in float32."""
    return {
        key: tensor.detach().cpu().to(torch.float16 if tensor.ndim > 1 else tensor.dtype).contiguous()
        for key, tensor in state.items()
    }
