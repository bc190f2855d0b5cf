"""python -m model.calibrate: the command in model/commands/calibrate.py."""

import typer

from model.commands.calibrate import main

if __name__ == "__main__":
    typer.run(main)
