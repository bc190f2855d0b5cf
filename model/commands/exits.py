"""What the commands have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from model.errors import ModelError


@contextmanager
def exit_codes(*, interrupted: str | None = None) -> Iterator[None]:
    """End the command with code 1 and the message of a `ModelError`, or with code 130 on an interrupt.

    Args:
        interrupted: printed to stderr on an interrupt.
    """
    try:
        yield
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        if interrupted:
            typer.echo(interrupted, err=True)
        raise typer.Exit(130) from error


def run(main: Callable[..., None], module: str) -> None:
    """Run a command as `python -m MODULE`. Its help is plain text, in which [default: ...] is not markup.

    Args:
        main: the function of the command.
        module: its name.
    """
    command = typer.Typer(add_completion=False, rich_markup_mode=None)
    command.command()(main)
    command(prog_name=f"python -m {module}")
