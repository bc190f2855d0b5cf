"""The plots of a run. Only the contact sheets contain images of the data set, and they are not in the bundle."""

import io
import warnings
from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from model.card import Mistake
from model.training.data import LabeledImages
from model.training.evaluate import ECE_BINS, Assessment, Scores

matplotlib.use("agg")

# The confusion matrix of more classes has no numbers.
_COUNTED = 20

_INK, _BLUE, _ORANGE, _GRID = "#222222", "#2563a8", "#d9730d", "#dddddd"


def plots(
    labels: Sequence[str], history: Sequence[dict[str, float]], assessment: Assessment, *, watched: str
) -> dict[str, bytes]:
    """The plots of a bundle: plots/curves.png, plots/confusion.png and plots/reliability.png.

    Args:
        labels: class names.
        history: one record per epoch, as in `loop.Run`.
        assessment: on the test set.
        watched: the part that was evaluated after each epoch, "holdout" or "test".

    Returns:
        Relative path to contents.
    """
    return {"plots/curves.png": _png(_curves(history, watched)), **result_plots(labels, assessment)}


def result_plots(labels: Sequence[str], assessment: Assessment) -> dict[str, bytes]:
    """The plots of the test alone: plots/confusion.png and plots/reliability.png.

    Args:
        labels: class names.
        assessment: on the test set.

    Returns:
        Relative path to contents.
    """
    return {
        "plots/confusion.png": _png(_confusion(labels, assessment.scores)),
        "plots/reliability.png": _png(_reliability(assessment)),
    }


def contact_sheet(mistakes: Sequence[Mistake], images: LabeledImages) -> bytes:
    """The wrongly classified images with the highest confidence, as PNG.

    Args:
        mistakes: of the card, at most 12.
        images: the test set.
    """
    titles = [
        f"{each.file or f'#{each.image}'}\n{each.label}, predicted {each.predicted} ({each.probability:.1%})"
        for each in mistakes
    ]
    return _grid([images.pixels[mistake.image] for mistake in mistakes], titles, rows=3, columns=4)


def batch_sheet(images: Tensor, titles: Sequence[str]) -> bytes:
    """The first images of a batch, at most 24, with their classes, as PNG.

    Args:
        images: uint8[N, H, W, 3].
        titles: the class of each image.
    """
    return _grid(images[:24], titles[:24], rows=4, columns=6)


def _grid(images: Iterable[Tensor], titles: Sequence[str], *, rows: int, columns: int) -> bytes:
    figure = Figure(figsize=(9, 7), layout="constrained")
    for place, (image, title) in enumerate(zip(images, titles, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(image.numpy())
        axes.set_axis_off()
        axes.set_title(_text(title), fontsize=7, wrap=True)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # in the names of classes
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _text(name: str) -> str:
    """The name of a class or a file, which is not a formula."""
    return name.replace("$", r"\$")


def _curves(history: Sequence[dict[str, float]], watched: str) -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, accuracy = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in history]
    losses.plot(epochs, [record["train_loss"] for record in history], color=_BLUE, marker=".", label="training")
    if "loss" in history[-1]:
        losses.plot(epochs, [record["loss"] for record in history], color=_ORANGE, marker=".", label=watched)
        accuracy.plot(
            epochs, [record["accuracy"] * 100 for record in history], color=_ORANGE, marker=".", label=watched
        )
        last = history[-1]
        accuracy.annotate(
            f"{last['accuracy']:.1%}",
            (last["epoch"], last["accuracy"] * 100),
            textcoords="offset points",
            xytext=(4, 7),
            ha="right",
        )
        accuracy.margins(y=0.12)
        accuracy.legend(frameon=False, loc="lower right")
    losses.set(xlabel="epoch", title="cross-entropy, nats")
    accuracy.set(xlabel="epoch", title="top-1 accuracy, %")
    losses.legend(frameon=False)
    for axes in (losses, accuracy):
        axes.grid(color=_GRID)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _confusion(labels: Sequence[str], scores: Scores) -> Figure:
    many = len(labels) > _COUNTED
    figure = Figure(figsize=(13, 12.4) if many else (7, 6.4), layout="constrained")
    axes = figure.add_subplot()
    fractions = scores.confusion / np.maximum(scores.confusion.sum(1, keepdims=True), 1)
    # The colour scale ends at the largest error, because the diagonal would make all errors look white.
    darkest = max(0.15, float((fractions - np.diag(fractions.diagonal())).max()))
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=darkest)
    names = [_text(label) for label in labels]
    size = min(10, 600 / len(labels))
    axes.set_xticks(range(len(labels)), names, rotation=90 if many else 45, ha="center" if many else "right", size=size)
    axes.set_yticks(range(len(labels)), names, size=size)
    axes.set(xlabel="predicted class", ylabel="right class", title="Number of test images")
    if many:  # the colours alone are readable
        return figure
    for row, counts in enumerate(scores.confusion):
        for column, count in enumerate(counts):
            if count:
                colour = "white" if fractions[row, column] > 0.6 * darkest else _INK
                axes.text(column, row, str(count), ha="center", va="center", fontsize=9, color=colour)
    return figure


def _reliability(assessment: Assessment) -> Figure:
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[4, 1])
    width = 1 / ECE_BINS
    centres = (np.arange(ECE_BINS) + 0.5) * width
    for name, scores, (axes, sizes) in zip(
        ("before", "after calibration"), (assessment.uncalibrated, assessment.scores), grid.T, strict=True
    ):
        count, confidence, accuracy = scores.bins.T
        filled = count > 0
        axes.plot([0, 1], [0, 1], color=_INK, linestyle=":", label="perfect calibration")
        axes.bar(centres[filled], accuracy[filled], width * 0.9, color=_BLUE, alpha=0.8, label="accuracy")
        axes.plot(confidence[filled], accuracy[filled], color=_ORANGE, marker=".", label="at the mean confidence")
        axes.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}: expected calibration error {scores.ece:.2%}")
        sizes.bar(centres, count, width * 0.9, color=_INK)
        sizes.set_yscale("log")
        sizes.set(xlabel="confidence")
        for part in (axes, sizes):
            part.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set(ylabel="accuracy")
    grid[0, 0].legend(frameon=False, loc="upper left")
    grid[1, 0].set(ylabel="images")
    return figure
