"""The quantisation command: python -m model.quantize weights/NAME --data data."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from model.commands.exits import exit_codes
from model.commands.options import DATA, Cache, Data


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Data = DATA,
    cache: Cache = Path("runs/cache"),
    weights: Annotated[
        Literal["auto", "int8", "float16"],
        typer.Option(help="auto uses int8 if that costs at most 0.1 point of held-out accuracy."),
    ] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first LIMIT images of each part.")] = None,
) -> None:
    """Add an OpenVINO model to a bundle and measure its accuracy. It is several times as fast on a CPU."""
    with exit_codes():
        if weights != "float16":
            import_module("nncf")  # before the images are read
        from model.bundle import open_bundle
        from model.training.data import load_again
        from model.training.progress import image_bar
        from model.training.quantize import add_openvino

        with image_bar() as progress:
            dataset = load_again(
                open_bundle(bundle).card, data, limit=limit, cache=cache, report=typer.echo, progress=progress
            )
        about = add_openvino(bundle, dataset, weights=weights, report=typer.echo)
        typer.echo(
            f"added an OpenVINO model in {about.weights} to {bundle}: test accuracy {about.top1:.2%} of "
            f"{len(dataset.test):,} images, {about.agreement:.2%} with the same first class as in float32"
        )
