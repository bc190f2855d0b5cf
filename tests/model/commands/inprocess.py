"""Run a command without a process of its own."""

from collections.abc import Callable
from pathlib import Path

import typer
from typer.testing import CliRunner, Result


def invoke(main: Callable[..., None], *arguments: str | Path) -> Result:
    """The result of a command: exit_code, stdout and stderr."""
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])
