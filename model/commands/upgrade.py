"""The upgrade command: python -m model.upgrade weights/NAME."""

from pathlib import Path
from typing import Annotated

import typer

from model.card import FORMAT_VERSION
from model.commands.exits import exit_codes


def main(bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")]) -> None:
    """Convert a bundle to the current format of card.json, and generate its README.md again.

    The weights and the predictions stay the same.
    """
    with exit_codes():
        from model.training.upgrade import upgrade

        if upgrade(bundle):
            typer.echo(f"converted {bundle} to format {FORMAT_VERSION}")
        else:
            typer.echo(f"{bundle} has format {FORMAT_VERSION} already; generated its README.md")
