"""python -m model.evaluate: the command in model/commands/evaluate.py."""

import typer

from model.commands.evaluate import main

if __name__ == "__main__":
    typer.run(main)
