"""The training command: python -m model.train --recipe NAME."""

import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from model.card import NAME_PATTERN
from model.engines.base import DeviceName
from model.errors import ModelError, SaveError, TrainingError
from model.nets.resnet import Stem
from model.training import data as datasets
from model.training import report
from model.training.export import export
from model.training.loop import train
from model.training.pretrained import read_state_dict
from model.training.recipes import RECIPES, Recipe, recipe_named

_LINE_EVERY = 30.0
_RECIPES_HELP = "\n\n".join(f"{recipe.name}: {recipe.summary}." for recipe in RECIPES.values())


class Lines:
    """Progress as plain lines, for a log file."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def begin(self, done: float) -> None:
        self.first = done
        self.pictures = 0
        self.began = self.spoke = time.monotonic()

    def step(self, *, epoch: int, loss: float | None, lr: float, pictures: int, done: float) -> None:
        self.pictures += pictures
        now = time.monotonic()
        if now - self.spoke >= _LINE_EVERY:
            self.spoke = now
            left = (now - self.began) / (done - self.first) * (1 - done)
            typer.echo(
                f"{done:.1%}, epoch {epoch}/{self.recipe.epochs}, lr {lr:.4f}, loss {loss:.4f}, "
                f"{self.pictures / (now - self.began):.0f} pictures/s, {left / 60:.0f} min left"
            )

    def epoch(self, record: dict[str, float]) -> None:
        typer.echo(epoch_line(record, self.recipe))


class Bar:
    """Progress as a bar with rate, loss and time left, for a terminal."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self.recipe = recipe
        self.progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(recipe.epochs)),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("lr {task.fields[lr]:.4f}  loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} pictures/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def begin(self, done: float) -> None:
        self.task = self.progress.add_task("", total=1.0, epoch=1, lr=0.0, loss=float("nan"), rate=0.0)
        self.progress.update(self.task, completed=done)
        self.pictures, self.began = 0, time.monotonic()

    def step(self, *, epoch: int, loss: float | None, lr: float, pictures: int, done: float) -> None:
        self.pictures += pictures
        rate = self.pictures / (time.monotonic() - self.began)
        self.progress.update(self.task, completed=done, epoch=epoch, lr=lr, loss=loss, rate=rate)

    def epoch(self, record: dict[str, float]) -> None:
        self.progress.console.print(epoch_line(record, self.recipe), highlight=False)


def epoch_line(record: dict[str, float], recipe: Recipe) -> str:
    """What is said after each epoch: epoch, loss and the accuracy of what is watched."""
    accuracy = f", {recipe.watch} accuracy {record['accuracy']:.2%}" if "accuracy" in record else ""
    return (
        f"epoch {record['epoch']}/{recipe.epochs}, loss {record['train_loss']:.4f}{accuracy}, "
        f"{record['side']} px, {record['seconds']:.0f} s"
    )


def main(
    recipe: Annotated[str, typer.Option(help=f"What to train.\n\n{_RECIPES_HELP}")],
    data: Annotated[Path, typer.Option(help="Folder that holds cifar-10-batches-py.")] = Path("data"),
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 into --data if it is missing.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's number.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order and augmentation.")] = 0,
    device: Annotated[DeviceName, typer.Option(help="auto takes CUDA where there is one.")] = "auto",
    network: Annotated[str | None, typer.Option(help="Instead of the recipe's network: resnet18 to resnet152.")] = None,
    stem: Annotated[Stem | None, typer.Option(help="Instead of the recipe's stem.")] = None,
    init: Annotated[
        Path | None, typer.Option(help="Start from this state dict; a head of another size is drawn anew.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only this many pictures, for a trial.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the checkpoint.  [default: runs/RECIPE]")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Bundle to write; must not exist.  [default: RUN/NETWORK-DATA]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run.")] = False,
) -> None:
    """Train a network, test it once and write a bundle that the service can load."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = run or Path("runs") / recipe
    try:
        chosen = recipe_named(recipe)
        chosen = replace(chosen, network=network or chosen.network, stem=stem or chosen.stem)
        if epochs is not None:
            chosen = chosen.lasting(epochs)
        bundle = out or folder / f"{chosen.network}-{chosen.data}"
        _run(
            chosen, data, folder, bundle,
            download=download, seed=seed, device=device, init=init, limit=limit, resume=resume,
        )  # fmt: skip
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        typer.echo("stopped; finished epochs are kept: go on with the same command and --resume", err=True)
        raise typer.Exit(130) from error


def _run(
    recipe: Recipe,
    root: Path,
    folder: Path,
    bundle: Path,
    *,
    download: bool,
    seed: int,
    device: DeviceName,
    init: Path | None,
    limit: int | None,
    resume: bool,
) -> None:
    if bundle.exists():
        raise SaveError(f"{bundle} exists: choose another --out, or move it away")
    if not re.match(NAME_PATTERN, bundle.name):
        raise SaveError(f"the name {bundle.name!r} will not do: end --out in letters, digits, dots, _ and - only")
    if device == "cuda" and not torch.cuda.is_available():
        raise TrainingError("there is no CUDA device here: use --device cpu or auto")
    start = None if init is None else read_state_dict(init)
    data = datasets.load(recipe.data, root, holdout=recipe.holdout, limit=limit, download=download)
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    console = Console()
    bar = Bar(recipe, console) if console.is_terminal else None
    if bar:
        bar.progress.start()
    try:
        result = train(
            recipe,
            data,
            device=torch.device(kind),
            seed=seed,
            folder=folder,
            observer=bar or Lines(recipe),
            resume=resume,
            init=start,
        )
    finally:
        if bar:
            bar.progress.stop()
    typer.echo(f"testing once, on {len(data.test):,} pictures")
    card, assessment = export(result, data, bundle, name=bundle.name, device=device)
    typer.echo(f"test accuracy {card.metrics.top1:.2%}, expected calibration error {card.metrics.ece:.2%}")
    typer.echo(f"wrote {bundle}")
    mistakes = folder / "mistakes.png"
    try:
        mistakes.write_bytes(report.contact_sheet(card.labels, assessment.scores, data.test))
    except OSError as error:
        mistakes.unlink(missing_ok=True)
        raise SaveError(f"{bundle} is whole, but {mistakes} cannot be written: {error.strerror}") from error
    typer.echo(f"the surest mistakes are pictured in {mistakes}")
