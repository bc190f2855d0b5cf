"""python -m model.upgrade: the command in model/commands/upgrade.py."""

from model.commands.exits import run

if __name__ == "__main__":
    run("upgrade", "python -m model.upgrade")
