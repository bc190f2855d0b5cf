"""python -m model.train: the command in model/commands/train.py."""

from model.commands.exits import run

if __name__ == "__main__":
    run("train", "python -m model.train")
