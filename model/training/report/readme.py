"""The README.md of a bundle, generated from its card."""

import json
import shlex
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from model.calibration import MIN_SPREAD
from model.card import ModelCard, Training
from model.training.calibrate import FEW_IMAGES
from model.training.evaluate import class_scores
from model.training.words import printable

README_FILE = "README.md"
NOTES_FILE = "NOTES.md"
"""Notes on how the weights were found, written by hand. README.md links to them if the bundle has them."""


def readme_of(folder: Path, card: ModelCard) -> bytes:
    """The contents of README.md in an existing bundle."""
    return readme(card, notes=(folder / NOTES_FILE).exists(), folder=folder).encode()


def readme(card: ModelCard, *, notes: bool = False, folder: Path | None = None) -> str:
    """Write README.md.

    Args:
        card: of the bundle.
        notes: whether the bundle has a `NOTES_FILE`.
        folder: of the bundle, for the commands; None for weights/NAME.
    """
    training, metrics, spec = card.training, card.metrics, card.input
    dataset, dataset_name, option = _dataset(training)
    place = _place(folder or Path("weights", card.name))
    started = f", from the weights with SHA-256 `{training.init_sha256[:12]}`" if training.init_sha256 else ""
    return f"""---
pipeline_tag: image-classification
datasets: [{dataset}]
metrics: [accuracy]
tags: [{card.architecture.name}, safetensors]
model-index:
- name: {card.name}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: {json.dumps(dataset_name, ensure_ascii=False)}, type: {dataset}, split: test}}
    metrics: [{{type: accuracy, value: {metrics.top1:.4f}}}]
---

# {card.name}

{_summary(card, notes=notes)}

| | |
|---|---|
| test accuracy | **{metrics.top1:.2%}** of {metrics.pictures:,} images |{_macro(card)}{_photos(card)}
| negative log-likelihood | {metrics.nll:.4f} nats |
| expected calibration error, 15 bins | {metrics.ece:.2%}, before calibration {metrics.ece_uncalibrated:.2%} |
| measured | {metrics.measured} |
| recipe | `{training.recipe["name"]}`{_changes(training.recipe)}, {training.epochs} epochs of {
        training.pictures:,} images, seed {training.seed}{started} |{_data(card)}{_teacher(card)}{_outliers(card)}{
        _average(card)
    }{_biases(card)}
| trained on | {training.device}, torch {training.torch}, {training.seconds / 60:.0f} minutes |
| code | commit `{training.commit}` |
| test transform | shorter side to {spec.resize}, {spec.interpolation}, central {spec.crop} x {spec.crop} |

This command serves it:

```sh
.venv/bin/tenfold serve --weights {shlex.quote(place)}
```

In Python:

```python
import model

classifier = model.load({json.dumps(place, ensure_ascii=False)})
```

This command repeats the measurements:

```sh
.venv/bin/tenfold evaluate {shlex.quote(place)} --data {option} --engine torch
```

## Training

![loss and accuracy by epoch](plots/curves.png)

## Accuracy by class

![confusion matrix](plots/confusion.png)

{_accuracies(card)}
{_mistakes(card)}## Calibration

![reliability diagram](plots/reliability.png)

{_calibration(card)}

## Images of none of the classes

{_out_of_distribution(card)}
{_openvino(card)}## The recipe

```json
{json.dumps(training.recipe, indent=2)}
```
"""


def _dataset(training: Training) -> tuple[str, str, str]:
    """The type and the name of the data set, and the value of --data."""
    added = " --data folder:PATH" * (len(training.data.added) if training.data else 0)
    if training.dataset_md5:
        return "cifar10", "CIFAR-10", f"data{added}"
    if training.data and training.data.sha256:
        return "imagefolder", training.data.name, f"folder:PATH{added}"
    return "synthetic", "synthetic", f"data{added}"


def _place(folder: Path) -> str:
    """The path of a folder for a command: relative to the current folder if it is below that."""
    path, here = folder.absolute(), Path.cwd()
    return printable(path.relative_to(here).as_posix() if path.is_relative_to(here) else path.as_posix())


def _data(card: ModelCard) -> str:
    """Rows of the table about a folder of images and about added ones, or nothing."""
    data = card.training.data
    if data is None:
        return ""
    added = "".join(
        f"\n| added | {_cell(each.name)}: {each.train:,} training, {each.holdout:,} held-out and {each.test:,} test "
        f"images, SHA-256 `{each.sha256[:12]}` |"
        for each in data.added
    )
    if data.sha256 is None:
        return added
    images = f"{sum(data.train):,} training, {sum(data.holdout):,} held-out and {sum(data.test):,} test images"
    by_class = f"{min(data.train):,} to {max(data.train):,} training images of a class"
    about = f"{_cell(data.name)}: {images} of {len(card.labels)} classes, {by_class}"
    return f"\n| data | {about}, SHA-256 `{data.sha256[:12]}` |{added}"


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


def _changes(recipe: dict[str, Any]) -> str:
    """The fields of the recipe that --set changed, or nothing."""
    values = ", ".join(f"`{name}={json.dumps(recipe[name])}`" for name in recipe.get("changed", ()))
    return f" with {values}" if values else ""


def _macro(card: ModelCard) -> str:
    """The row of the table about the mean over the classes, if they have different numbers of test images."""
    confusion = np.array(card.metrics.confusion)
    if len({*confusion.sum(1).tolist()}) == 1:
        return ""
    return f"\n| macro accuracy, the mean over the classes | **{np.nanmean(class_scores(confusion)[0]):.2%}** |"


def _photos(card: ModelCard) -> str:
    """The row of the table about photos, if they were measured."""
    photos = card.metrics.photos
    if photos is None:
        return ""
    return (
        f"\n| photos from other sources, up to {photos.views} views | **{photos.top1:.1%}** of {photos.images:,}; "
        f"{photos.accepted:.0%} accepted, and {photos.others_accepted:.0%} of {photos.others:,} of other things |"
    )


def _teacher(card: ModelCard) -> str:
    """A row of the table, or nothing."""
    teacher = card.training.teacher
    if teacher is None:
        return ""
    return (
        f"\n| teacher | `{teacher.name}`, weights with SHA-256 `{teacher.sha256[:12]}`, in {teacher.precision} by "
        f"{teacher.engine} |"
    )


def _average(card: ModelCard) -> str:
    """A row on what the weights were averaged with, if they were."""
    average = card.training.average
    if average is None:
        return ""
    return f"\n| averaged | with weights of SHA-256 `{average.sha256[:12]}`, which have a share of {average.share:g} |"


def _biases(card: ModelCard) -> str:
    """A row on the correction of the biases, if there was one."""
    biases = card.training.class_biases
    if biases is None:
        return ""
    return (
        f"\n| biases of the classes | changed by {min(biases):+.2f} to {max(biases):+.2f} after the training, for the "
        "lowest loss on the held-out images |"
    )


def _outliers(card: ModelCard) -> str:
    """A row of the table, or nothing."""
    outliers = card.training.outliers
    if outliers is None:
        return ""
    generated = f" and {outliers.generated:,} generated ones" if outliers.generated else ""
    without = f", without the folders {', '.join(outliers.without)}" if outliers.without else ""
    return f"\n| outliers | {outliers.images:,} images{generated}, SHA-256 `{outliers.sha256[:12]}`{without} |"


def _summary(card: ModelCard, *, notes: bool) -> str:
    crop, size = card.input.crop, card.complexity
    text = (
        f"{card.architecture.name} with {size.parameters:,} parameters. One view of {crop} x {crop} pixels takes "
        f"{size.multiply_adds / 1e9:.2f} GMAC. This page is generated from `card.json`, which programs should read "
        "instead."
    )
    return _wrapped(f"{text} The [notes]({NOTES_FILE}) describe how the weights were found." if notes else text)


def _accuracies(card: ModelCard) -> str:
    confusion = np.array(card.metrics.confusion)
    lines = ["| class | accuracy | F1 score | test images |", "|---|---|---|---|"]
    rows = zip(map(_cell, card.labels), *class_scores(confusion), confusion.sum(1), strict=True)
    for label, accuracy, f1, images in rows:
        lines.append(f"| {label} | {accuracy:.1%} | {f1:.3f} | {images:,} |" if images else f"| {label} | | | 0 |")
    return "\n".join(lines) + "\n"


def _mistakes(card: ModelCard) -> str:
    if not card.metrics.mistakes:
        return ""
    rows = "\n".join(
        f"| {mistake.image if mistake.file is None else _cell(mistake.file)} | {_cell(mistake.label)} | "
        f"{_cell(mistake.predicted)} | {mistake.probability:.1%} |"
        for mistake in card.metrics.mistakes
    )
    indexed = [mistake.file is None for mistake in card.metrics.mistakes]
    names = ["file"] * (not all(indexed)) + ["index in the test set"] * any(indexed)
    return f"""The mistakes with the highest confidence:

| {" or ".join(names)} | class | predicted | probability |
|---|---|---|---|
{rows}

"""


def _calibration(card: ModelCard) -> str:
    calibration = card.calibration
    if not calibration.pictures:
        return "No images were held out for a temperature. The probabilities are not calibrated."
    power = ""
    if calibration.exponent:
        power = (
            f" times their spread to the power of {calibration.exponent}. The spread is the largest logit less the "
            f"mean of the logits, but at least {MIN_SPREAD:g}"
        )
    return _wrapped(
        f"The logits are divided by a temperature of {calibration.temperature}{power}. This minimises the negative "
        f"log-likelihood on {calibration.pictures:,} held-out images{_in_views(calibration.views)}."
        f"{_few(calibration.pictures)}"
    )


def _few(images: int) -> str:
    """A sentence about too few held-out images, or nothing."""
    if images >= FEW_IMAGES:
        return ""
    return (
        f" **These are few images**: with fewer than {FEW_IMAGES}, the probabilities and the verdicts are rough, and "
        "so is a choice between two runs by their held-out accuracy."
    )


_SCORES = {
    "energy": "The out-of-distribution score is the logarithm of the sum of the exponentials of the logits (energy).",
    "class-mean-cosine": "The out-of-distribution score is the largest cosine between the penultimate features and a "
    "class mean, both centred on the mean of the class means.",
    "mixture": "The out-of-distribution score is a weighted sum of two scores. One is the logarithm of the sum of the "
    "exponentials of the logits (energy). The other is the largest cosine between the penultimate features and a class "
    "mean, both centred on the mean of the class means.",
}


def _out_of_distribution(card: ModelCard) -> str:
    spec, metrics = card.out_of_distribution, card.metrics
    part = "held-out" if card.calibration.pictures else "training"
    text = _wrapped(
        f"{_SCORES[spec.score.method]} It needs no second forward pass. An image is accepted if at least "
        f"{spec.thresholds.accepted:.0%} of {spec.pictures:,} {part} images{_in_views(spec.views)} do not score "
        f"higher. Below {spec.thresholds.uncertain:.0%} it counts as an image of something else. Between the two "
        "limits it is uncertain."
    )
    kinds = "\n".join(
        f"| {name} | {f'{metrics.auroc[name]:.3f}' if name in metrics.auroc else ''} | {accepted:.1%} | "
        f"{f'{metrics.other[name]:.1%}' if name in metrics.other else ''} |"
        for name, accepted in metrics.accepted.items()
    )
    return f"""{text}

| images | AUROC against test images | accepted | other |
|---|---|---|---|
{kinds}
"""


def _openvino(card: ModelCard) -> str:
    about = card.openvino
    if about is None:
        return ""
    weights = (
        f"Its weights and activations have 8 bits. {about.pictures:,} held-out images determined their ranges."
        if about.weights == "int8"
        else "Its weights have 16 bits."
    )
    made = "On a CPU the service runs `openvino.xml`, which `python -m model.quantize` made from the same weights."
    return f"""## The OpenVINO model

{_wrapped(f"{made} {weights}")}

| | |
|---|---|
| test accuracy | **{about.top1:.2%}** |
| same prediction as in float32 | {about.agreement:.2%} of the test images |

"""


def _in_views(views: int) -> str:
    return " in one view each" if views == 1 else f" in {views} views each"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
