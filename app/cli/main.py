"""tenfold: the commands under one name. What one needs is imported when it is run, so that --help comes at once."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from app.cli.classify.command import main as classify

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
app.command("classify")(classify)

# Options and --help of these are their own.
_HANDED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback()
def tenfold() -> None:
    """Images to ranked CIFAR-10 classes: classify files, serve, and make the weights."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.  [default: 8000]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, each with its own copy of the model.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the bundle.  [default: weights/resnet18-cifar10]")
    ] = None,
    engine: Annotated[Literal["auto", "openvino", "torch"] | None, typer.Option(help="Runtime.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="What it runs on.")] = None,
    threads: Annotated[int | None, typer.Option(help="Of the network on a CPU; 0 leaves it to the runtime.")] = None,
) -> None:
    """Serve over HTTP, as python -m app does.

    Settings are read from the environment (TENFOLD_PORT, ...; the README lists them); an option sets the one of its
    name.
    """
    from app.__main__ import run
    from app.settings import default_weights

    chosen = {
        "host": host,
        "port": port,
        "workers": workers,
        "weights": weights or default_weights(),
        "engine": engine,
        "device": device,
        "threads": threads,
    }
    # Where the workers read them too.
    os.environ.update({f"TENFOLD_{name.upper()}": str(value) for name, value in chosen.items() if value is not None})
    run([])


@app.command(context_settings=_HANDED_ON)
def train(context: typer.Context) -> None:
    """Train a network and write a bundle of weights."""

    def imported() -> Callable[..., None]:
        from model.commands.train import main

        return main

    _hand_on(context, imported)


@app.command(context_settings=_HANDED_ON)
def evaluate(context: typer.Context) -> None:
    """Score a bundle on the CIFAR-10 test set."""

    def imported() -> Callable[..., None]:
        from model.commands.evaluate import main

        return main

    _hand_on(context, imported)


@app.command(context_settings=_HANDED_ON)
def quantize(context: typer.Context) -> None:
    """Add a model for OpenVINO to a bundle."""

    def imported() -> Callable[..., None]:
        from model.commands.quantize import main

        return main

    _hand_on(context, imported)


def _hand_on(context: typer.Context, imported: Callable[[], Callable[..., None]]) -> None:
    try:
        main = imported()
    except ImportError as error:
        print(
            f"error: {context.command_path} needs what is installed for training ({error}): "
            "run make install, or install tenfold[train]",
            file=sys.stderr,
        )
        raise typer.Exit(2) from error
    command = typer.Typer(add_completion=False)
    command.command()(main)
    command(context.args, prog_name=context.command_path)


def main() -> None:
    """The program `tenfold`."""
    app(prog_name="tenfold")


if __name__ == "__main__":
    main()
