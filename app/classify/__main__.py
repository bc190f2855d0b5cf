"""python -m app.classify: as `tenfold classify`."""

import typer

from app.classify.command import main

if __name__ == "__main__":
    command = typer.Typer(add_completion=False)
    command.command()(main)
    command(prog_name="python -m app.classify")
