"""The evaluation command: python -m model.evaluate weights/NAME --data data."""

import json
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from model.classifier import load
from model.engines.base import DeviceName, EngineName
from model.errors import ModelError
from model.training.data import CIFAR10_LABELS, load_cifar10_test
from model.training.evaluate import Assessment, assess, assessed


def main(
    weights: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Annotated[Path, typer.Option(help="Folder that holds cifar-10-batches-py.")] = Path("data"),
    engine: Annotated[EngineName, typer.Option(help="Runtime.")] = "auto",
    device: Annotated[DeviceName, typer.Option(help="auto takes CUDA where there is one.")] = "auto",
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many test pictures.")] = None,
) -> None:
    """Score a bundle on the CIFAR-10 test set, as the service would answer it: a table, then a line of JSON."""
    try:
        classifier = load(weights, engine=engine, device=device)
        if tuple(classifier.card.labels) != CIFAR10_LABELS:
            raise ModelError(f"{weights} does not classify into CIFAR-10's ten classes: name another bundle")
        pictures = load_cifar10_test(data)[:limit]
        console = Console(stderr=True)
        with Progress(console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("pictures", total=assessed(pictures))
            card = classifier.card
            assessment = assess(
                classifier.engine,
                card.input,
                card.calibration,
                card.out_of_distribution,
                pictures,
                progress=lambda count: bar.update(task, advance=count),
            )
    except ModelError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(130) from error
    runtime, scores = classifier.engine, assessment.scores
    Console().print(
        table(assessment, f"{classifier.card.name} on {runtime.name}, {runtime.device}, {runtime.precision}")
    )
    summary = {
        "model": classifier.card.name,
        "version": classifier.card.version,
        "engine": runtime.name,
        "device": runtime.device,
        "precision": runtime.precision,
        "pictures": scores.pictures,
        "top1": scores.top1,
        "nll": scores.nll,
        "ece": scores.ece,
        "ece_uncalibrated": assessment.uncalibrated.ece,
        "auroc": assessment.auroc,
        "accepted": assessment.accepted,
        "per_class": {
            label: None if math.isnan(accuracy) else float(accuracy)
            for label, accuracy in zip(CIFAR10_LABELS, scores.per_class, strict=True)
        },
    }
    typer.echo(json.dumps(summary, allow_nan=False))


def table(assessment: Assessment, title: str) -> Table:
    """The scores for people."""
    scores = assessment.scores
    out = Table(title=title, title_justify="left")
    out.add_column("measure")
    out.add_column("value", justify="right")
    out.add_row("pictures", f"{scores.pictures:,}")
    out.add_row("top-1", f"{scores.top1:.2%}")
    out.add_row("negative log-likelihood", f"{scores.nll:.4f} nats")
    out.add_row("expected calibration error", f"{scores.ece:.2%}")
    out.add_row("... before calibration", f"{assessment.uncalibrated.ece:.2%}")
    out.add_row("test pictures accepted", f"{assessment.accepted['test']:.1%}", end_section=True)
    for name, area in assessment.auroc.items():
        out.add_row(f"AUROC against {name}", f"{area:.3f}")
        out.add_row(f"{name} accepted", f"{assessment.accepted[name]:.1%}")
    out.add_section()
    for label, accuracy in zip(CIFAR10_LABELS, scores.per_class, strict=True):
        out.add_row(label, f"{accuracy:.1%}")
    return out
