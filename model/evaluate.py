"""python -m model.evaluate: the command in model/commands/evaluate.py."""

from model.commands.exits import run

if __name__ == "__main__":
    run("evaluate", "python -m model.evaluate")
