"""python -m model.train: the command in model/commands/train.py."""

import typer

from model.commands.train import main

if __name__ == "__main__":
    typer.run(main)
