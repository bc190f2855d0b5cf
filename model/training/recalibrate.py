"""Fit the constants of a bundle again, and measure it again, or measure its reference distributions only."""

from pathlib import Path

from model.bundle import open_bundle, update_bundle
from model.card import ONNX_FILE, ModelCard, Thresholds
from model.engines.choose import choose
from model.engines.torch import TorchEngine, load_network
from model.training.calibrate import fit, measure_reference, observe
from model.training.data import DataSet
from model.training.evaluate import Progress, assess
from model.training.export import expected_of, metrics_of
from model.training.report.plots import result_plots
from model.training.report.readme import README_FILE, readme_of


def recalibrate(
    folder: Path, data: DataSet, *, thresholds: Thresholds | None = None, progress: Progress | None = None
) -> ModelCard:
    """Fit the calibration and the out-of-distribution score of a bundle again, and test it in float32 on the CPU.

    The weights stay the same.

    Args:
        folder: of the bundle.
        data: that the bundle was trained on.
        thresholds: new limits of the verdicts; None for those of the card.
        progress: called after each batch of the test.

    Returns:
        The new card.

    Raises:
        BundleError: the bundle is damaged.
        SaveError: the bundle cannot be written. It is unchanged.
    """
    bundle = open_bundle(folder)
    card, spec = bundle.card, bundle.card.input
    engine = TorchEngine(load_network(bundle), spec, device="cpu", precision="float32")
    calibration, ood, reference = fit(observe(engine, spec, data), outliers=card.training.outliers is not None)
    ood = ood.model_copy(update={"thresholds": thresholds or card.out_of_distribution.thresholds})
    assessment = assess(engine, spec, calibration, ood, data.test, progress=progress)
    about = card.openvino
    if about is not None:
        chosen = choose(bundle, engine="openvino", device="cpu", threads=0)
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
    update_bundle(folder, {**result_plots(card.labels, assessment), README_FILE: readme_of(folder, card)}, card)
    if bundle.card.onnx is None:
        return card
    from model.training.exchange import add_onnx

    return add_onnx(folder)  # the file contains the calibration


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
