"""python -m model.quantize: the command in model/commands/quantize.py."""

from model.commands.exits import run
from model.commands.quantize import main

if __name__ == "__main__":
    run(main, "model.quantize")
