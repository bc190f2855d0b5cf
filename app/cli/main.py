"""The program `tenfold` and its commands. Each imports what it needs when it runs, so that --help is immediate."""

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from app import __version__
from app.cli.classify.command import main as classify

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
app.command("classify")(classify)

# The arguments are parsed by a command of another package, --help included.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _print_version(given: bool) -> None:
    if given:
        print(f"tenfold {__version__}")
        raise typer.Exit


@app.callback()
def tenfold(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Classify images, serve the model over HTTP, and train it."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 chooses a free one.  [default: 8000]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes, each with its own copy of every model.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the bundle.  [default: weights/resnet18-cifar10]")
    ] = None,
    models: Annotated[
        str | None, typer.Option(help="Comma-separated folders of several bundles; the first is the default model.")
    ] = None,
    engine: Annotated[Literal["auto", "openvino", "onnx", "torch"] | None, typer.Option(help="Runtime.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"] | None, typer.Option(help="Device of the network.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the network on a CPU; 0 leaves it to the runtime.")
    ] = None,
) -> None:
    """Serve one model or several over HTTP, like python -m app.

    Settings are read from the environment (TENFOLD_PORT, ...). An option overrides the setting with its name.
    """
    from app.__main__ import run
    from app.settings import default_weights

    options = {
        "host": host,
        "port": port,
        "workers": workers,
        "weights": weights,
        "models": models,
        "engine": engine,
        "device": device,
        "threads": threads,
    }
    if weights or models:  # override both settings
        os.environ.pop("TENFOLD_WEIGHTS", None)
        os.environ.pop("TENFOLD_MODELS", None)
    else:
        options |= default_weights()
    # Worker processes read the environment too.
    os.environ.update({f"TENFOLD_{name.upper()}": str(value) for name, value in options.items() if value is not None})
    run([])


@app.command(context_settings=_PASSED_ON)
def train(context: typer.Context) -> None:
    """Train a network and write a bundle."""

    def load_command() -> Callable[..., None]:
        from model.commands.train import main

        return main

    _pass_on(context, load_command)


@app.command(context_settings=_PASSED_ON)
def recipes(context: typer.Context) -> None:
    """List the training recipes and what each is for, or the fields of one."""

    def load_command() -> Callable[..., None]:
        from model.commands.recipes import main

        return main

    _pass_on(context, load_command)


@app.command(context_settings=_PASSED_ON)
def evaluate(context: typer.Context) -> None:
    """Evaluate a bundle on test images."""

    def load_command() -> Callable[..., None]:
        from model.commands.evaluate import main

        return main

    _pass_on(context, load_command)


@app.command(context_settings=_PASSED_ON)
def quantize(context: typer.Context) -> None:
    """Add a quantized OpenVINO model to a bundle."""

    def load_command() -> Callable[..., None]:
        from model.commands.quantize import main

        return main

    _pass_on(context, load_command)


@app.command(context_settings=_PASSED_ON)
def export(context: typer.Context) -> None:
    """Write the network of a bundle as an ONNX file, or for torch.export."""

    def load_command() -> Callable[..., None]:
        from model.commands.export import main

        return main

    _pass_on(context, load_command)


@app.command(context_settings=_PASSED_ON)
def networks(context: typer.Context) -> None:
    """List the networks with their sizes."""

    def load_command() -> Callable[..., None]:
        from model.commands.networks import main

        return main

    _pass_on(context, load_command)


def _pass_on(context: typer.Context, load_command: Callable[[], Callable[..., None]]) -> None:
    try:
        main = load_command()
    except ImportError as error:
        print(
            f"error: {context.command_path} requires the training dependencies ({error}): "
            "run make install, or install tenfold[train]",
            file=sys.stderr,
        )
        raise typer.Exit(2) from error
    command = typer.Typer(add_completion=False, rich_markup_mode=None)
    command.command()(main)
    command(context.args, prog_name=context.command_path)


def main() -> None:
    """The program `tenfold`."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # oddities in files that it reads nevertheless
    app(prog_name="tenfold")


if __name__ == "__main__":
    main()
