"""python -m model.quantize: the command in model/commands/quantize.py."""

import typer

from model.commands.quantize import main

if __name__ == "__main__":
    typer.run(main)
