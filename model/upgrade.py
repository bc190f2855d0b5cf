"""python -m model.upgrade: the command in model/commands/upgrade.py."""

import typer

from model.commands.upgrade import main

if __name__ == "__main__":
    typer.run(main)
