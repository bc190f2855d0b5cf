"""Fit the constants of a bundle again, and measure it again; or change its limits or reference distributions only."""

import time
from collections.abc import Callable
from pathlib import Path

from model.bundle import Bundle, open_bundle, update_bundle
from model.card import ONNX_FILE, ModelCard, Thresholds
from model.classifier import self_test_pixels
from model.engines.base import Engine
from model.engines.choose import choose
from model.engines.torch import TorchEngine, load_network
from model.training.calibrate import fit, measure_reference, observe
from model.training.data import DataSet
from model.training.evaluate import OTHERS, Progress, assess
from model.training.export import expected_of, metrics_of
from model.training.report.plots import result_plots
from model.training.report.readme import README_FILE, readme_of
from model.training.words import counted


def recalibrate(
    folder: Path,
    data: DataSet,
    *,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> ModelCard:
    """Fit the calibration and the out-of-distribution score of a bundle again, and test it in float32 on the CPU.

    The weights and the limits of the verdicts stay the same.

    Args:
        folder: of the bundle.
        data: that the bundle was trained on.
        report: called with a line of text about the work before it begins.
        progress: called after each batch of the test.

    Returns:
        The new card.

    Raises:
        BundleError: the bundle is damaged.
        EngineError: the bundle has an OpenVINO model, and OpenVINO is not installed.
        ModuleNotFoundError: it has an ONNX model, and the packages that write it are not installed.
        SaveError: the bundle cannot be written.
        Whatever is raised, the bundle is unchanged.
    """
    bundle = open_bundle(folder)
    card, spec = bundle.card, bundle.card.input
    if card.onnx is not None:  # its file contains the calibration
        from model.training.exchange import with_onnx
    chosen = choose(bundle, engine="openvino", device="cpu") if card.openvino else None
    engine = TorchEngine(load_network(bundle), spec, device="cpu", precision="float32")
    fitted = len(data.holdout) or len(data.train)
    report(
        f"fitting the constants to {counted(fitted, 'image')} and testing on {len(data.test):,} and on others, in "
        f"float32: {_duration(engine, spec.crop, fitted + _tested(data))}"
    )
    calibration, ood, reference = fit(observe(engine, spec, data), outliers=card.training.outliers is not None)
    ood = ood.model_copy(update={"thresholds": card.out_of_distribution.thresholds})
    assessment = assess(engine, spec, calibration, ood, data.test, progress=progress)
    about = card.openvino
    if about is not None and chosen is not None:
        about = about.model_copy(update={"self_test": expected_of(chosen, spec.crop, calibration, ood)})
    measured = f"after the fit of the constants, one view, float32 on {engine.device}"
    card = card.model_copy(
        update={
            "metrics": metrics_of(assessment, card.labels, files=data.test_files, measured=measured),
            "calibration": calibration,
            "out_of_distribution": ood,
            "reference": reference,
            "self_test": expected_of(engine, spec.crop, calibration, ood),
            "openvino": about,
            "onnx": None,
            "files": {name: sha256 for name, sha256 in card.files.items() if name != ONNX_FILE},
        }
    )
    files = result_plots(card.labels, assessment)
    if bundle.card.onnx is not None:
        files[ONNX_FILE], card = with_onnx(Bundle(folder, card))
    update_bundle(folder, {**files, README_FILE: readme_of(folder, card)}, card)
    return card


def set_limits(
    folder: Path,
    data: DataSet,
    thresholds: Thresholds,
    *,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> ModelCard:
    """Change the limits of the verdicts of a bundle, and measure how many images have which verdict.

    The constants stay the same. The images are run in the engine that serves the bundle here, as it is the fastest.

    Args:
        folder: of the bundle.
        data: with the test images of the bundle.
        thresholds: the new limits.
        report: called with a line of text about the work before it begins.
        progress: called after each batch.

    Returns:
        The new card.

    Raises:
        BundleError: the bundle is damaged.
        EngineError: no engine can run here.
        SaveError: the bundle cannot be written. It is unchanged.
    """
    bundle = open_bundle(folder)
    card, spec = bundle.card, bundle.card.input
    engine = choose(bundle)
    where = f"{engine.precision} on {engine.name}"
    report(
        f"counting the verdicts of {counted(len(data.test), 'test image')} and of others, in {where}: "
        f"{_duration(engine, spec.crop, _tested(data))}"
    )
    ood = card.out_of_distribution.model_copy(update={"thresholds": thresholds})
    found = assess(engine, spec, card.calibration, ood, data.test, progress=progress)
    measured = f"{card.metrics.measured.partition('; ')[0]}; the verdicts in {where}"
    metrics = card.metrics.model_copy(update={"accepted": found.accepted, "other": found.other, "measured": measured})
    card = card.model_copy(update={"out_of_distribution": ood, "metrics": metrics})
    update_bundle(folder, {README_FILE: readme_of(folder, card)}, card)
    return card


def _tested(data: DataSet) -> int:
    """The number of images that `assess` runs: the test images and three kinds of others."""
    return len(data.test) + 3 * min(len(data.test), OTHERS)


def _duration(engine: Engine, side: int, images: int) -> str:
    """About how long an engine takes for so many images, by the time of one batch."""
    pixels = self_test_pixels(0, engine.preferred_batch, side)
    engine.run(pixels)  # the first one is slower
    began = time.monotonic()
    engine.run(pixels)
    minutes = (time.monotonic() - began) * images / len(pixels) / 60
    return "about a minute" if minutes < 1.5 else f"about {minutes:.0f} minutes"


def add_reference(folder: Path, data: DataSet) -> ModelCard:
    """Measure the reference distributions of a bundle in float32 on the CPU. The rest of its card stays the same.

    Args:
        folder: of the bundle.
        data: that the bundle was trained on.

    Returns:
        The new card. It has the same version, because predictions do not depend on the distributions.

    Raises:
        BundleError: the bundle is damaged.
        DataError: no images were held out.
        SaveError: the bundle cannot be written. It is unchanged.
    """
    bundle = open_bundle(folder)
    engine = TorchEngine(load_network(bundle), bundle.card.input, device="cpu", precision="float32")
    card = bundle.card.model_copy(update={"reference": measure_reference(engine, bundle.card, data)})
    update_bundle(folder, {}, card)
    return card
