"""python -m model.upgrade: the command in model/commands/upgrade.py."""

from model.commands.exits import run
from model.commands.upgrade import main

if __name__ == "__main__":
    run(main, "model.upgrade")
