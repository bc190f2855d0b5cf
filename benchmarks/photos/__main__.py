"""The photo benchmark: python -m benchmarks.photos weights/NAME, real photographs as people upload them."""

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
    weights: Annotated[list[Path], typer.Argument(help="Folders of bundles, to compare.")],
    cache: Annotated[Path, typer.Option(help="Folder that the packages are fetched into.")] = Path("data/photos"),
    engine: Annotated[EngineName, typer.Option(help="Runtime.")] = "auto",
    device: Annotated[DeviceName, typer.Option(help="auto takes CUDA where there is one.")] = "auto",
) -> None:
    """Score bundles on real photographs, by number of views: a table each, then a line of JSON each."""
    console = Console()
    photos, left_out = collect(cache)
    for reason in left_out:
        typer.echo(f"left out: {reason}", err=True)
    for folder in weights:
        try:
            classifier = load(folder, engine=engine, device=device)
        except ModelError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from error
        rows = score(classifier, photos)
        console.print(table(rows, classifier, photos))
        summary = {"model": classifier.card.name, "version": classifier.card.version, "views": rows}
        typer.echo(json.dumps(summary))


def score(classifier: Classifier, photos: list[Photo]) -> list[dict[str, float]]:
    """One record for each number of views, 1 to `MAX_VIEWS`.

    Each has: views; right, the share of the classes' photos that are answered right; right_by_class, the mean of each
    class's share (most are birds and cats); right_of_accepted, the share right of those accepted; auroc, of
    in_distribution, the classes' photos against all others; accepted and others_accepted, the shares accepted;
    milliseconds, of inference a picture.
    """
    labels = classifier.card.labels
    pictures = [
        preprocess(photo.path.read_bytes(), classifier.card.input, max_pixels=_MAX_PIXELS, views=MAX_VIEWS).pixels
        for photo in photos
    ]
    known = np.array([photo.label is not None for photo in photos])
    truth = np.array([labels.index(photo.label) if photo.label else -1 for photo in photos])
    rows = []
    for views in range(1, MAX_VIEWS + 1):
        began = time.perf_counter()
        predictions = [
            prediction
            for start in range(0, len(pictures), 16)
            for prediction in classifier.classify([picture[:views] for picture in pictures[start : start + 16]])
        ]
        seconds = time.perf_counter() - began
        right = np.array([int(prediction.probabilities.argmax()) for prediction in predictions]) == truth
        inside: NDArray[np.float64] = np.array([prediction.in_distribution for prediction in predictions])
        accepted = np.array([prediction.accepted() for prediction in predictions])
        rows.append(
            {
                "views": float(views),
                "right": float(right[known].mean()),
                "right_by_class": float(np.mean([right[truth == label].mean() for label in np.unique(truth[known])])),
                "right_of_accepted": float(right[known & accepted].mean()),
                "auroc": auroc(inside[known], inside[~known]),
                "accepted": float(accepted[known].mean()),
                "others_accepted": float(accepted[~known].mean()),
                "milliseconds": seconds / len(pictures) * 1000,
            }
        )
    return rows


def table(rows: list[dict[str, float]], classifier: Classifier, photos: list[Photo]) -> Table:
    """The scores for people."""
    known = sum(photo.label is not None for photo in photos)
    runtime = classifier.engine
    out = Table(
        title=f"{classifier.card.name} {classifier.card.version} on {runtime.name}, {runtime.device}, "
        f"{runtime.precision}: {known} photos of the classes, {len(photos) - known} pictures of other things",
        title_justify="left",
    )
    for heading in (
        "views",
        "right",
        "by class",
        "right of accepted",
        "AUROC",
        "accepted",
        "others accepted",
        "ms a picture",
    ):
        out.add_column(heading, justify="right")
    for row in rows:
        out.add_row(
            f"{row['views']:.0f}",
            f"{row['right']:.1%}",
            f"{row['right_by_class']:.1%}",
            f"{row['right_of_accepted']:.1%}",
            f"{row['auroc']:.3f}",
            f"{row['accepted']:.1%}",
            f"{row['others_accepted']:.1%}",
            f"{row['milliseconds']:.1f}",
        )
    return out


if __name__ == "__main__":
    typer.run(main)
