"""The training command: python -m model.train --recipe NAME."""

import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from model.commands.exits import exit_codes, tenfold
from model.commands.options import DATA, Cache, Data
from model.engines.base import DeviceName
from model.errors import RecipeError
from model.nets.resnet import Stem
from model.nets.zoo import BUILDERS, TIMM
from model.training.recipes import FIELD_DEFAULTS, RECIPES, recipe_named

_RECIPES_HELP = "\n\n".join(f"{recipe.name}: {recipe.summary}." for recipe in RECIPES.values())


def main(
    recipe: Annotated[str, typer.Option(help=f"What to train.\n\n{_RECIPES_HELP}")],
    data: Data = DATA,
    download: Annotated[bool, typer.Option("--download", help="Download CIFAR-10 to --data if it is missing.")] = False,
    epochs: Annotated[int | None, typer.Option(min=1, help="Number of epochs, instead of the recipe's.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of the weights, the order and the augmentation.")
    ] = 0,
    device: Annotated[DeviceName, typer.Option(help="Device to train on; auto uses CUDA if available.")] = "auto",
    network: Annotated[
        str | None,
        typer.Option(help=f"Network, instead of the recipe's: {', '.join(BUILDERS)}, {TIMM}NAME (docs/networks.md)."),
    ] = None,
    stem: Annotated[Stem | None, typer.Option(help="Stem of the network, instead of the recipe's.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Another value of a field of the recipe, such as lr=0.1; can be repeated. tenfold recipes NAME lists "
            "the fields.",
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            help="Weights to start from: a state dict, or a bundle, whose network and image size are then used too. A "
            "classifier of other classes is replaced."
        ),
    ] = None,
    outliers: Annotated[
        Path | None,
        typer.Option(help="Folder of images of other things, in any layout, for outlier exposure (docs/training.md)."),
    ] = None,
    outliers_without: Annotated[
        str, typer.Option(metavar="NAME,...", help="Names of folders inside --outliers that are not used.")
    ] = "",
    teacher: Annotated[
        Path | None,
        typer.Option(help="Bundle with the same classes to learn from, for distillation (docs/training.md)."),
    ] = None,
    average_with: Annotated[
        Path | None,
        typer.Option(
            help="Weights to average the trained ones with, such as those that the run began from (docs/training.md)."
        ),
    ] = None,
    average_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of the weights of --average-with in the mean.  [default: 0.5]"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first LIMIT images of each part.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of the checkpoint.  [default: runs/RECIPE]")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Bundle to write; must not exist.  [default: RUN/NETWORK-DATA]")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            help="Name on the card, which the model is served under. tenfold reload needs that of the running model.  "
            "[default: the last part of --out]"
        ),
    ] = None,
    cache: Cache = Path("runs/cache"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --run.")] = False,
) -> None:
    """Train a network, test it once and write a bundle that the service can load."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = run or Path("runs") / recipe
    saved = folder / "checkpoint.pt"
    of_other_run = saved.exists() and not resume

    def interrupted() -> str:
        if saved.exists() and not of_other_run:
            return f"stopped; the progress is saved in {folder}: continue with the same command and --resume"
        return "stopped; nothing is saved, because no epoch was finished: start again with the same command"

    with exit_codes(interrupted=interrupted):
        _require("--outliers", outliers, ["--outliers-without"] * bool(outliers_without) + _set("outlier_", settings))
        _require("--teacher", teacher, _set("teacher_", settings))
        _require("--average-with", average_with, ["--average-share"] * (average_share is not None))
        from model.bundle import open_bundle
        from model.training.data import folder_of
        from model.training.overrides import changed
        from model.training.ranks import joined_ranks
        from model.training.run import bundle_name, train_bundle

        with joined_ranks(device) as ranks:
            chosen = recipe_named(recipe)
            if init and init.is_dir():
                chosen = chosen.for_bundle(open_bundle(init).card)
            chosen = chosen.with_network(network or chosen.network, **({"stem": stem} if stem else {}))
            if epochs is not None:
                chosen = chosen.lasting(epochs)
            chosen = changed(chosen, settings or ())
            images = folder_of(data)
            images = images and images.resolve()
            source = chosen.data if images is None else images.stem if images.is_file() else images.name
            out = out or folder / bundle_name(chosen.network, source)
            train_bundle(
                chosen,
                data=data,
                run=folder,
                out=out,
                name=name,
                device=device,
                seed=seed,
                download=download,
                init=init,
                outliers=outliers,
                outliers_without=[name for name in outliers_without.split(",") if name],
                teacher=teacher,
                average_with=average_with,
                average_share=0.5 if average_share is None else average_share,
                limit=limit,
                cache=cache,
                resume=resume,
                ranks=ranks,
            )
            if ranks.main:
                images_of = " ".join(f"--data {shlex.quote(source)}" for source in data)
                typer.echo(f"serve it: {tenfold()} serve --weights {shlex.quote(str(out))}")
                typer.echo(f"faster on a CPU, before: {tenfold()} quantize {shlex.quote(str(out))} {images_of}")


def _set(prefix: str, settings: Sequence[str] | None) -> list[str]:
    """The options --set for fields of the recipe that begin with a prefix."""
    names = [setting.partition("=")[0] for setting in settings or ()]
    return [f"--set {name}" for name in names if name.startswith(prefix) and name in FIELD_DEFAULTS]


def _require(option: str, value: Path | None, dependent: Sequence[str]) -> None:
    """Refuse options that have no effect without another one.

    Raises:
        RecipeError: `value` is missing, and a dependent option is given.
    """
    if value is None and dependent:
        raise RecipeError(f"{dependent[0]} has no effect without {option}: give both or neither")
