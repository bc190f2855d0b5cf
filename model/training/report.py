"""The bundle's README.md and its plots: drawn from numbers alone, no data-set picture among them."""

import io
import json
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from model.card import ModelCard
from model.training.data import LabeledImages
from model.training.evaluate import ECE_BINS, Assessment, Scores

matplotlib.use("agg")

_INK, _BLUE, _ORANGE, _GRID = "#222222", "#2563a8", "#d9730d", "#dddddd"
_MISTAKES = 12


def files(
    card: ModelCard, history: Sequence[dict[str, float]], assessment: Assessment, *, watched: str
) -> dict[str, bytes]:
    """README.md and plots/*.png of a bundle.

    Args:
        card: of the bundle.
        history: one record an epoch, as `loop.Run` keeps it.
        assessment: on the test set.
        watched: what was evaluated after each epoch, "holdout" or "test".

    Returns:
        Relative path to contents.
    """
    scores = assessment.scores
    return {
        "README.md": _readme(card, history, scores).encode(),
        "plots/curves.png": _png(_curves(history, watched)),
        "plots/confusion.png": _png(_confusion(card.labels, scores)),
        "plots/reliability.png": _png(_reliability(assessment)),
    }


def surest_mistakes(scores: Scores) -> list[int]:
    """Indices of the wrongly classified pictures with the highest confidence, surest first."""
    chosen = scores.probabilities.argmax(1)
    wrong = np.flatnonzero(chosen != scores.truth)
    order = np.argsort(-scores.probabilities[wrong, chosen[wrong]], kind="stable")
    return [int(index) for index in wrong[order][:_MISTAKES]]


def contact_sheet(labels: Sequence[str], scores: Scores, pictures: LabeledImages) -> bytes:
    """PNG of the surest mistakes, for the eye. It shows data-set pictures, so it stays out of the bundle."""
    figure = Figure(figsize=(9, 7), layout="constrained")
    for place, index in enumerate(surest_mistakes(scores), start=1):
        axes = figure.add_subplot(3, _MISTAKES // 3, place)
        axes.imshow(pictures.pixels[index].numpy())
        axes.set_axis_off()
        chosen = int(scores.probabilities[index].argmax())
        axes.set_title(
            f"#{index}: {labels[scores.truth[index]]}\ntaken for {labels[chosen]} "
            f"({scores.probabilities[index, chosen]:.1%})",
            fontsize=9,
        )
    return _png(figure)


def _readme(card: ModelCard, history: Sequence[dict[str, float]], scores: Scores) -> str:
    training, metrics, spec = card.training, card.metrics, card.input
    classes = "\n".join(
        f"| {label} | {accuracy:.1%} |" for label, accuracy in zip(card.labels, scores.per_class, strict=True)
    )
    mistakes = "\n".join(
        f"| {index} | {card.labels[scores.truth[index]]} | {card.labels[chosen]} "
        f"| {scores.probabilities[index, chosen]:.1%} |"
        for index in surest_mistakes(scores)
        for chosen in [int(scores.probabilities[index].argmax())]
    )
    last = history[-1]
    part = "held-out" if training.recipe["watch"] == "holdout" else "test"
    started = f", from the weights with SHA-256 `{training.init_sha256[:12]}`" if training.init_sha256 else ""
    watched = (
        f"; {last['accuracy']:.2%} of the {part} pictures right after the last epoch" if "accuracy" in last else ""
    )
    recipe = json.dumps(training.recipe, indent=2)
    fitted = card.calibration.pictures
    known = card.out_of_distribution
    accepted = (
        f"A picture is accepted when at least {known.threshold:.0%} of {known.pictures:,} "
        f"{'held-out' if fitted else 'training'} pictures score no higher."
    )
    calibration = (
        f"Logits are divided by a temperature of {card.calibration.temperature}, fitted to the likelihood of the "
        f"{fitted:,} held-out pictures."
        if fitted
        else "No pictures were held out to fit a temperature to: the probabilities are uncalibrated."
    )
    others = "\n".join(
        f"| {name} | {area:.3f} | {metrics.accepted[name]:.1%} |" for name, area in metrics.auroc.items()
    )
    return f"""---
pipeline_tag: image-classification
datasets: [{"cifar10" if training.dataset_md5 else "synthetic"}]
metrics: [accuracy]
tags: [{card.architecture.name}, safetensors]
model-index:
- name: {card.name}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: {"CIFAR-10" if training.dataset_md5 else "synthetic"}, type: {
        "cifar10" if training.dataset_md5 else "synthetic"
    }, split: test}}
    metrics: [{{type: accuracy, value: {metrics.top1:.4f}}}]
---

# {card.name}

{card.architecture.name}, {card.complexity.parameters:,} parameters, {card.complexity.multiply_adds / 1e9:.2f} GMAC a
picture of {spec.crop} x {spec.crop} pixels. This page was written by `python -m model.train`; the numbers are those of
`card.json`, which a program should read instead.

| | |
|---|---|
| test top-1 | **{metrics.top1:.2%}** of {metrics.pictures:,} pictures |
| negative log-likelihood | {metrics.nll:.4f} nats |
| expected calibration error, {ECE_BINS} bins | {metrics.ece:.2%}; before calibration {metrics.ece_uncalibrated:.2%} |
| measured | {metrics.measured} |
| recipe | `{training.recipe["name"]}`, {training.epochs} epochs over {training.pictures:,} pictures, seed {
        training.seed
    }{started} |
| trained on | {training.device}, torch {training.torch}, {training.seconds / 60:.0f} minutes{watched} |
| code | commit `{training.commit}` |
| test transform | shorter side to {spec.resize}, {spec.interpolation}, central {spec.crop} x {spec.crop} |

Classify with it: `make serve`, or in Python

    import model
    classifier = model.load("weights/{card.name}")

Repeat the test figures: `python -m model.evaluate weights/{card.name} --data data`.

## Training

![loss and accuracy by epoch](plots/curves.png)

## Where it errs

![confusion matrix](plots/confusion.png)

| class | right |
|---|---|
{classes}

The surest mistakes, by number in the test set:

| picture | is | taken for | probability |
|---|---|---|---|
{mistakes}

## How far its probabilities can be trusted

![reliability diagram](plots/reliability.png)

{calibration}

## Images of none of the classes

The score is the cosine between the penultimate features and the nearest class mean, both seen from the mean of all
classes: no second forward pass. {accepted}

| pictures | AUROC against test pictures | accepted |
|---|---|---|
| test | | {metrics.accepted["test"]:.1%} |
{others}

## The recipe in full

```json
{recipe}
```
"""


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


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
    accuracy.set(xlabel="epoch", title="top-1, %")
    losses.legend(frameon=False)
    for axes in (losses, accuracy):
        axes.grid(color=_GRID)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _confusion(labels: Sequence[str], scores: Scores) -> Figure:
    figure = Figure(figsize=(7, 6.4), layout="constrained")
    axes = figure.add_subplot()
    share = scores.confusion / np.maximum(scores.confusion.sum(1, keepdims=True), 1)
    # The scale is that of the errors, which the diagonal would drown.
    darkest = max(0.15, float((share - np.diag(share.diagonal())).max()))
    axes.imshow(share, cmap="Blues", vmin=0, vmax=darkest)
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="taken for", ylabel="is", title="Images of each class (row) taken for each class (column)")
    for row, counts in enumerate(scores.confusion):
        for column, count in enumerate(counts):
            if count:
                colour = "white" if share[row, column] > 0.6 * darkest else _INK
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
        count, confidence, right = scores.bins.T
        filled = count > 0
        axes.plot([0, 1], [0, 1], color=_INK, linestyle=":", label="perfect")
        axes.bar(centres[filled], right[filled], width * 0.9, color=_BLUE, alpha=0.8, label="right")
        axes.plot(confidence[filled], right[filled], color=_ORANGE, marker=".", label="at the bin's mean confidence")
        axes.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}: expected calibration error {scores.ece:.2%}")
        sizes.bar(centres, count, width * 0.9, color=_INK)
        sizes.set_yscale("log")
        sizes.set(xlabel="confidence of the first class")
        for part in (axes, sizes):
            part.spines[["top", "right"]].set_visible(False)
    grid[0, 0].set(ylabel="share right")
    grid[0, 0].legend(frameon=False, loc="upper left")
    grid[1, 0].set(ylabel="pictures")
    return figure
