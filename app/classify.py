"""`python -m app.classify`, the same command as `tenfold classify`."""

import typer

from app.cli.classify.command import main

if __name__ == "__main__":
    command = typer.Typer(add_completion=False, rich_markup_mode=None)
    command.command()(main)
    command(prog_name="python -m app.classify")
