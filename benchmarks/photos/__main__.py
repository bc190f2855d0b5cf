"""python -m benchmarks.photos weights/NAME: accuracy on real photographs."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, get_args

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from app.settings import Settings
from benchmarks.photos.collection import Photo, collect
from model import MAX_VIEWS, Classifier, Prediction, Verdict, load, preprocess
from model.bundle import update_bundle
from model.card import PhotoMetrics
from model.commands.exits import exit_codes
from model.engines.base import DeviceName, EngineName
from model.training.evaluate import auroc, score
from model.training.report.readme import README_FILE, readme_of

_MAX_PIXELS = 200_000_000
_VIEWS: int = Settings.model_fields["views"].default


def main(
    weights: Annotated[list[Path], typer.Argument(help="Folders of the bundles to compare.")],
    cache: Annotated[Path, typer.Option(help="Folder for the downloaded photos.")] = Path("data/photos"),
    engine: Annotated[EngineName, typer.Option(help="Runtime.")] = "auto",
    device: Annotated[DeviceName, typer.Option(help="auto uses CUDA if it is available.")] = "auto",
    write: Annotated[
        bool, typer.Option(help="Write the accuracy with the default views to card.json and README.md.")
    ] = False,
) -> None:
    """Evaluate bundles on real photographs by number of views. Print a table and a line of JSON for each.

    Decisions are based on half A of the photos. Half B is for reports.
    """
    console = Console()
    with exit_codes():
        classifiers = [load(folder, engine=engine, device=device) for folder in weights]
        photos, skipped = collect(cache)
        for reason in skipped:
            typer.echo(f"skipped: {reason}", err=True)
        for folder, classifier in zip(weights, classifiers, strict=True):
            rows = evaluate(classifier, photos)
            console.print(table(rows, classifier))
            summary = {"model": classifier.card.name, "version": classifier.card.version, "views": rows}
            typer.echo(json.dumps(summary))
            if write:
                write_metrics(folder, classifier, rows)


Row = dict[str, float | int | str]


def write_metrics(folder: Path, classifier: Classifier, rows: Sequence[Row]) -> None:
    """Write the metrics of all photos in the default number of views to the card and the README.md of a bundle.

    Args:
        folder: of the bundle.
        classifier: loaded from it.
        rows: from `evaluate`.
    """
    row = next(row for row in rows if (row["views"], row["half"]) == (_VIEWS, "all"))
    photos = PhotoMetrics.model_validate(
        {
            "images": row["photos"],
            "others": row["others"],
            "views": row["views"],
            **{name: round(float(row[name]), 4) for name in ("top1", "accepted", "others_accepted")},
        }
    )
    metrics = classifier.card.metrics.model_copy(update={"photos": photos})
    card = classifier.card.model_copy(update={"metrics": metrics})
    update_bundle(folder, {README_FILE: readme_of(folder, card)}, card)


def evaluate(classifier: Classifier, photos: list[Photo]) -> list[Row]:
    """Metrics for each largest number of views from 1 to `MAX_VIEWS`, of both halves of the photos and of all.

    Returns:
        Records with these keys.
        views: largest number of views.
        half: "A", "B" or "all".
        photos: number of photos of the classes.
        others: number of other images.
        top1: accuracy on the photos of the classes.
        top1_by_class: mean over the classes of the accuracy, since most photos are birds and cats.
        top1_of_accepted: accuracy on the accepted photos of the classes.
        run: mean number of views that were run of the photos of the classes.
        ece: expected calibration error on the photos of the classes, 15 bins.
        auroc: of the out-of-distribution score, photos of the classes against all others.
        accepted, uncertain, other: shares of the photos of the classes with these verdicts.
        others_accepted, others_uncertain, others_other: the same for the other images.
        milliseconds: inference time per image, of all.
    """
    labels = classifier.card.labels
    images = [
        preprocess(photo.path.read_bytes(), classifier.card.input, max_pixels=_MAX_PIXELS, views=MAX_VIEWS).pixels
        for photo in photos
    ]
    truth = np.array([labels.index(photo.label) if photo.label else -1 for photo in photos])
    halves = np.array([photo.half for photo in photos])
    rows = []
    for views in range(1, MAX_VIEWS + 1):
        started = time.perf_counter()
        predictions = [
            prediction
            for start in range(0, len(images), 16)
            for prediction in classifier.classify([image[:views] for image in images[start : start + 16]])
        ]
        milliseconds = (time.perf_counter() - started) / len(images) * 1000
        for half in ("A", "B", "all"):
            part = np.flatnonzero((halves == half) | (half == "all"))
            metrics = measure([predictions[index] for index in part], truth[part])
            rows.append({"views": views, "half": half, **metrics, "milliseconds": milliseconds})
    return rows


def measure(predictions: Sequence[Prediction], truth: NDArray[np.int64]) -> dict[str, float]:
    """The metrics of some photos, as in `evaluate`.

    Args:
        predictions: of N photos.
        truth: right classes, -1 for images of something else, int64[N].
    """
    known = truth >= 0
    probabilities = np.stack([prediction.probabilities for prediction in predictions])
    correct = probabilities.argmax(axis=1) == truth
    scores = np.array([prediction.score for prediction in predictions])
    verdicts = np.array([prediction.verdict() for prediction in predictions])
    accepted = verdicts == "accepted"
    return {
        "photos": int(known.sum()),
        "others": int((~known).sum()),
        "top1": float(correct[known].mean()),
        "top1_by_class": float(np.mean([correct[truth == label].mean() for label in np.unique(truth[known])])),
        "top1_of_accepted": float(correct[known & accepted].mean()),
        "run": float(np.mean([prediction.views for prediction, one in zip(predictions, known, strict=True) if one])),
        "ece": score(np.log(np.maximum(probabilities[known], 1e-12)), truth[known]).ece,
        "auroc": auroc(scores[known], scores[~known]),
        **{verdict: float((verdicts[known] == verdict).mean()) for verdict in get_args(Verdict)},
        **{f"others_{verdict}": float((verdicts[~known] == verdict).mean()) for verdict in get_args(Verdict)},
    }


def table(rows: list[Row], classifier: Classifier) -> Table:
    """The metrics as a table."""
    runtime = classifier.engine
    out = Table(
        title=f"{classifier.card.name} {classifier.card.version} on {runtime.name}, {runtime.device}, "
        f"{runtime.precision}: {rows[-1]['photos']} photos of the classes and {rows[-1]['others']} others, "
        "with % accepted/uncertain/other. max: largest number of views; run: mean number of views of the photos of the "
        "classes",
        title_justify="left",
    )
    headings = ("max", "run", "of", "top-1", "class", "ECE", "AUROC", "photos", "others", "ms")
    for heading in headings:
        out.add_column(heading, justify="right")
    for row in rows:
        out.add_row(
            str(row["views"]),
            f"{row['run']:.1f}",
            str(row["half"]),
            *(f"{row[name]:.1%}" for name in ("top1", "top1_by_class", "ece")),
            f"{row['auroc']:.3f}",
            *(
                "/".join(f"{100 * float(row[prefix + verdict]):.0f}" for verdict in get_args(Verdict))
                for prefix in ("", "others_")
            ),
            f"{row['milliseconds']:.1f}",
            end_section=row["half"] == "all",
        )
    return out


if __name__ == "__main__":
    typer.run(main)
