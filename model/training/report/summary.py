"""The result of an evaluation, as a table and as JSON."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from model.card import ModelCard
from model.classifier import Classifier
from model.training.evaluate import Assessment, class_scores

_ROWS = 20


def summary(classifier: Classifier, assessment: Assessment) -> dict[str, Any]:
    """The scores of a bundle, for programs. A class without test images has no accuracy and no F1 score, so its
    entries are None.
    """
    card, engine, scores = classifier.card, classifier.engine, assessment.scores
    return {
        "model": card.name,
        "version": card.version,
        "engine": engine.name,
        "device": engine.device,
        "precision": engine.precision,
        "pictures": scores.images,
        "top1": scores.top1,
        "macro": scores.macro,
        "nll": scores.nll,
        "ece": scores.ece,
        "ece_uncalibrated": assessment.uncalibrated.ece,
        "auroc": assessment.auroc,
        "accepted": assessment.accepted,
        "other": assessment.other,
        "per_class": _by_label(card.labels, scores.per_class),
        "f1": _by_label(card.labels, scores.f1),
    }


def _by_label(labels: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    return {label: None if math.isnan(value) else float(value) for label, value in zip(labels, values, strict=True)}


def table(classifier: Classifier, assessment: Assessment) -> Table:
    """The scores of a bundle, for people."""
    engine, scores = classifier.engine, assessment.scores
    out = Table(
        title=f"{classifier.card.name} on {engine.name}, {engine.device}, {engine.precision}", title_justify="left"
    )
    out.add_column("measure")
    out.add_column("value", justify="right")
    out.add_row("images", f"{scores.images:,}")
    out.add_row("top-1 accuracy", f"{scores.top1:.2%}")
    out.add_row("macro accuracy, the mean over the classes", f"{scores.macro:.2%}")
    out.add_row("negative log-likelihood", f"{scores.nll:.4f} nats")
    out.add_row("expected calibration error", f"{scores.ece:.2%}")
    out.add_row("... before calibration", f"{assessment.uncalibrated.ece:.2%}")
    out.add_row("test images accepted", f"{assessment.accepted['test']:.1%}")
    out.add_row("test images with the verdict other", f"{assessment.other['test']:.1%}", end_section=True)
    for name, area in assessment.auroc.items():
        out.add_row(f"AUROC against {name}", f"{area:.3f}")
        out.add_row(f"{name} accepted", f"{assessment.accepted[name]:.1%}")
        out.add_row(f"{name} with the verdict other", f"{assessment.other[name]:.1%}")
    out.add_section()
    out.add_row("accuracy and F1 score by class", "")
    for label, accuracy, f1 in zip(classifier.card.labels, scores.per_class, scores.f1, strict=True):
        out.add_row(escape(label), "no images" if math.isnan(accuracy) else f"{accuracy:.1%}  {f1:.3f}")
    return out


def class_table(card: ModelCard) -> Table:
    """The test accuracy and the F1 score of each class of a card; of many classes, those with the lowest accuracy."""
    confusion = np.array(card.metrics.confusion)
    rows = [row for row in zip(card.labels, *class_scores(confusion), confusion.sum(1), strict=True) if row[-1]]
    title = "test images by class"
    if len(rows) > _ROWS:
        title = f"the {_ROWS} classes with the lowest accuracy"
        rows = sorted(rows, key=lambda row: row[1])[:_ROWS]
    out = Table("class", title=title, title_justify="left")
    for name in ("accuracy", "F1 score", "images"):
        out.add_column(name, justify="right")
    for label, accuracy, f1, images in rows:
        out.add_row(escape(label), f"{accuracy:.1%}", f"{f1:.3f}", f"{images:,}")
    return out
