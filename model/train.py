"""python -m model.train: the command in model/commands/train.py."""

from model.commands.exits import run
from model.commands.train import main

if __name__ == "__main__":
    run(main, "model.train")
