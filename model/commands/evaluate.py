"""The evaluation command: python -m model.evaluate weights/NAME --data data."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from model.commands.exits import exit_codes
from model.commands.options import DATA, Cache, Data
from model.engines.base import DeviceName, EngineName


def main(
    weights: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Data = DATA,
    cache: Cache = Path("runs/cache"),
    part: Annotated[
        Literal["auto", "test", "all"],
        typer.Option(
            help="Images of folder:PATH. auto uses all of them, unless PATH has a folder of test images or is the "
            "training data: then those that were for the test."
        ),
    ] = "auto",
    engine: Annotated[EngineName, typer.Option(help="Runtime.")] = "auto",
    device: Annotated[DeviceName, typer.Option(help="Device to run on; auto uses CUDA if available.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first LIMIT test images.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
) -> None:
    """Score a bundle on test images, preprocessed as in the service."""
    with exit_codes():
        from model.training.evaluate import evaluate_bundle
        from model.training.progress import image_bar
        from model.training.report.summary import summary, table

        with image_bar() as progress:
            classifier, assessment = evaluate_bundle(
                weights,
                data,
                part=part,
                engine=engine,
                device=device,
                limit=limit,
                cache=cache,
                report=partial(typer.echo, err=True),
                progress=progress,
            )
        if as_json:
            typer.echo(json.dumps(summary(classifier, assessment), allow_nan=False))
        else:
            Console().print(table(classifier, assessment))
