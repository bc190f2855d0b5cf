"""python -m benchmarks.photos weights/NAME: accuracy on real photographs."""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.photos.collection import Photo, collect
from model import MAX_VIEWS, Classifier, ModelError, load, preprocess
from model.engines.base import DeviceName, EngineName
from model.training.evaluate import auroc

_MAX_PIXELS = 200_000_000


def main(
    weights: Annotated[list[Path], typer.Argument(help="Folders of the bundles to compare.")],
    cache: Annotated[Path, typer.Option(help="Folder for the downloaded photos.")] = Path("data/photos"),
    engine: Annotated[EngineName, typer.Option(help="Runtime.")] = "auto",
    device: Annotated[DeviceName, typer.Option(help="auto uses CUDA if it is available.")] = "auto",
) -> None:
    """Evaluate bundles on real photographs by number of views. Print a table and a line of JSON for each."""
    console = Console()
    photos, skipped = collect(cache)
    for reason in skipped:
        typer.echo(f"skipped: {reason}", err=True)
    for folder in weights:
        try:
            classifier = load(folder, engine=engine, device=device)
        except ModelError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        rows = evaluate(classifier, photos)
        console.print(table(rows, classifier, photos))
        summary = {"model": classifier.card.name, "version": classifier.card.version, "views": rows}
        typer.echo(json.dumps(summary))


def evaluate(classifier: Classifier, photos: list[Photo]) -> list[dict[str, float]]:
    """Metrics for each number of views from 1 to `MAX_VIEWS`.

    Returns:
        Records with these keys.
        views: number of views.
        top1: accuracy on the photos of the classes.
        top1_by_class: mean over the classes of the accuracy, since most photos are birds and cats.
        top1_of_accepted: accuracy on the accepted photos of the classes.
        auroc: of in_distribution, photos of the classes against all others.
        accepted: share of the photos of the classes that are accepted.
        others_accepted: share of the other images that are accepted.
        milliseconds: inference time per image.
    """
    labels = classifier.card.labels
    images = [
        preprocess(photo.path.read_bytes(), classifier.card.input, max_pixels=_MAX_PIXELS, views=MAX_VIEWS).pixels
        for photo in photos
    ]
    known = np.array([photo.label is not None for photo in photos])
    truth = np.array([labels.index(photo.label) if photo.label else -1 for photo in photos])
    rows = []
    for views in range(1, MAX_VIEWS + 1):
        started = time.perf_counter()
        predictions = [
            prediction
            for start in range(0, len(images), 16)
            for prediction in classifier.classify([image[:views] for image in images[start : start + 16]])
        ]
        seconds = time.perf_counter() - started
        correct = np.array([int(prediction.probabilities.argmax()) for prediction in predictions]) == truth
        scores: NDArray[np.float64] = np.array([prediction.in_distribution for prediction in predictions])
        accepted = np.array([prediction.accepted() for prediction in predictions])
        rows.append(
            {
                "views": float(views),
                "top1": float(correct[known].mean()),
                "top1_by_class": float(np.mean([correct[truth == label].mean() for label in np.unique(truth[known])])),
                "top1_of_accepted": float(correct[known & accepted].mean()),
                "auroc": auroc(scores[known], scores[~known]),
                "accepted": float(accepted[known].mean()),
                "others_accepted": float(accepted[~known].mean()),
                "milliseconds": seconds / len(images) * 1000,
            }
        )
    return rows


def table(rows: list[dict[str, float]], classifier: Classifier, photos: list[Photo]) -> Table:
    """The metrics as a table."""
    known = sum(photo.label is not None for photo in photos)
    runtime = classifier.engine
    out = Table(
        title=f"{classifier.card.name} {classifier.card.version} on {runtime.name}, {runtime.device}, "
        f"{runtime.precision}: {known} photos of the classes, {len(photos) - known} other images",
        title_justify="left",
    )
    for heading in (
        "views",
        "top-1",
        "top-1 by class",
        "top-1 of accepted",
        "AUROC",
        "accepted",
        "others accepted",
        "ms per image",
    ):
        out.add_column(heading, justify="right")
    for row in rows:
        out.add_row(
            f"{row['views']:.0f}",
            f"{row['top1']:.1%}",
            f"{row['top1_by_class']:.1%}",
            f"{row['top1_of_accepted']:.1%}",
            f"{row['auroc']:.3f}",
            f"{row['accepted']:.1%}",
            f"{row['others_accepted']:.1%}",
            f"{row['milliseconds']:.1f}",
        )
    return out


if __name__ == "__main__":
    typer.run(main)
