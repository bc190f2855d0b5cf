"""What the commands have in common."""

import io
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import typer

from model.errors import ModelError

# Top-level module -> extra of pyproject.toml that installs it. The extra train has what training and evaluation need.
_EXTRAS = {
    **dict.fromkeys(("matplotlib", "nncf", "openvino", "safetensors", "torch", "torchvision"), "train"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "timm": "zoo",
}


@contextmanager
def exit_codes(*, interrupted: Callable[[], str] | None = None) -> Iterator[None]:
    """End the command with one sentence on stderr instead of a traceback.

    The exit code is 1 after a `ModelError`, 2 if a package is missing, and 130 after an interrupt.

    Args:
        interrupted: its result is printed after an interrupt.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr has it already
        sys.stdout.reconfigure(errors="backslashreplace")  # for names that the terminal's encoding lacks
    try:
        yield
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        advice = f"run make install, or install tenfold[{_EXTRAS[package]}]"
        typer.echo(f"error: the package {package} {reason}: {advice}", err=True)
        raise typer.Exit(2) from error
    except KeyboardInterrupt as error:
        if interrupted:
            typer.echo(interrupted(), err=True)
        raise typer.Exit(130) from error


def tenfold() -> str:
    """How the program `tenfold` of this environment is called in the current folder."""
    beside = Path(sys.executable).with_name("tenfold")
    if not beside.exists():
        return f"{shlex.quote(sys.executable)} -m app.cli.main"
    if shutil.which("tenfold") == str(beside):
        return "tenfold"
    here = Path.cwd()
    return shlex.quote(str(beside.relative_to(here) if beside.is_relative_to(here) else beside))


def run(name: str, program: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command. Its help is plain text, in which [default: ...] is not markup.

    Args:
        name: of its module in `model.commands`.
        program: how it was called, for its help.
        arguments: of the command line; None for those of this process.
    """
    command = typer.Typer(add_completion=False, rich_markup_mode=None)
    try:
        with exit_codes():
            main = import_module(f"model.commands.{name}").main
    except typer.Exit as end:
        raise SystemExit(end.exit_code) from end
    command.command()(main)
    command(arguments, prog_name=program)
