"""The program `tenfold` and its commands. Each imports what it needs when it runs, so that --help is immediate."""

import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import typer

from app import __version__
from app.cli.classify.command import main as classify
from app.cli.feedback import app as feedback
from app.cli.reload import main as reload

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
app.command("classify")(classify)
app.command("reload")(reload)
app.add_typer(feedback, name="feedback", help="Export labels from clients, or delete predictions.")


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
    uds: Annotated[Path | None, typer.Option(help="Unix socket to listen on, instead of host and port.")] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that speak HTTP, with one more for the models.")
    ] = None,
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
        "uds": uds,
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
    given = {name: str(value) for name, value in options.items() if value is not None}
    # Other processes of the service read the environment too.
    os.environ.update({f"TENFOLD_{name.upper()}": value for name, value in given.items()})
    run([], given)


def _add_training_command(name: str, summary: str) -> None:
    """Add the command of the module `model.commands.NAME`, which is imported when the command runs."""

    def command(context: typer.Context) -> None:
        try:
            run = import_module("model.commands.exits").run
        except ModuleNotFoundError as error:  # in the container
            print(
                f"error: {context.command_path} is not part of this installation, which only serves: run it in a "
                "checkout, or install tenfold[train]",
                file=sys.stderr,
            )
            raise typer.Exit(2) from error
        run(name, context.command_path, context.args)

    # The inner command parses the arguments, --help included.
    options = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help=summary, context_settings=options)(command)


for _name, _summary in (
    ("train", "Train a network and write a bundle."),
    ("recipes", "List the training recipes, or the fields of one."),
    ("networks", "List the networks with their sizes."),
    ("evaluate", "Evaluate a bundle on test images."),
    ("calibrate", "Fit the calibration of a bundle again and repeat its test."),
    ("quantize", "Add a quantized OpenVINO model to a bundle."),
    ("export", "Write the network of a bundle as an ONNX file."),
):
    _add_training_command(_name, _summary)


def main() -> None:
    """The program `tenfold`."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # oddities in files that it reads nevertheless
    app(prog_name="tenfold")


if __name__ == "__main__":
    main()
