"""python -m model.quantize: the command in model/commands/quantize.py."""

from model.commands.exits import run

if __name__ == "__main__":
    run("quantize", "python -m model.quantize")
