"""The quantisation command: python -m model.quantize weights/NAME --data data."""

from pathlib import Path
from typing import Annotated

import typer

from model.bundle import open_bundle
from model.errors import DataError, ModelError
from model.training import data as datasets
from model.training.quantize import Choice, add_openvino


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Annotated[Path, typer.Option(help="Folder that holds cifar-10-batches-py.")] = Path("data"),
    weights: Annotated[
        Choice, typer.Option(help="auto takes int8 if that costs at most 0.1 point on the held-out pictures.")
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many pictures, for a trial.")] = None,
) -> None:
    """Add a model for OpenVINO to a bundle, several times as fast on a CPU, and measure what it costs."""
    try:
        recipe = open_bundle(bundle).card.training.recipe
        try:
            kind, holdout = str(recipe["data"]), int(recipe["holdout"])
        except KeyError as error:
            raise DataError(f"the card's recipe lacks {error}: which pictures were held out is not known") from error
        pictures = datasets.load(kind, data, holdout=holdout, limit=limit)
        about = add_openvino(bundle, pictures, weights=weights, say=typer.echo)
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    typer.echo(
        f"added {about.weights} for OpenVINO to {bundle}: {about.top1:.2%} of {len(pictures.test):,} test pictures "
        f"right, {about.agreement:.2%} answered as in float32"
    )
