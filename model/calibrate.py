"""python -m model.calibrate: the command in model/commands/calibrate.py."""

from model.commands.exits import run

if __name__ == "__main__":
    run("calibrate", "python -m model.calibrate")
