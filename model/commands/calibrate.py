"""The calibration command: python -m model.calibrate weights/NAME --data data."""

from pathlib import Path
from typing import Annotated

import typer

from model.commands.exits import exit_codes
from model.commands.options import DATA, Cache, Data


def main(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    data: Data = DATA,
    cache: Cache = Path("runs/cache"),
    accepted: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Only change this limit: an image with a lower in_distribution is not accepted."
        ),
    ] = None,
    uncertain: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Only change this limit: an image with a lower in_distribution has the verdict other.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first LIMIT images of each part.")] = None,
    reference_only: Annotated[
        bool,
        typer.Option(
            "--reference-only",
            help="Only measure the distributions that a service compares live images with. Nothing else changes.",
        ),
    ] = False,
) -> None:
    """Fit the calibration and the out-of-distribution score of a bundle again, and test it again.

    The distributions that a service compares live images with are measured again too. The weights stay the same.
    Commands that train a bundle do all this already. It takes minutes on a CPU.

    With --accepted or --uncertain, only these limits change, and the verdicts are counted again.
    """
    if reference_only and (accepted is not None or uncertain is not None):
        raise typer.BadParameter(
            "it changes no limits: leave out --accepted and --uncertain", param_hint="--reference-only"
        )
    with exit_codes():
        from model.bundle import open_bundle
        from model.card import Thresholds
        from model.training.data import load_again
        from model.training.progress import image_bar
        from model.training.recalibrate import add_reference, recalibrate, set_limits
        from model.training.words import counted

        known = open_bundle(bundle).card
        limits = known.out_of_distribution.thresholds
        only_limits = accepted is not None or uncertain is not None
        accepted = limits.accepted if accepted is None else accepted
        uncertain = limits.uncertain if uncertain is None else uncertain
        if uncertain > accepted:
            raise typer.BadParameter(
                f"--uncertain ({uncertain}) is above --accepted ({accepted}): lower it", param_hint="--uncertain"
            )
        with image_bar() as progress:
            dataset = load_again(known, data, limit=limit, cache=cache, report=typer.echo, progress=progress)
        if reference_only:
            card = add_reference(bundle, dataset)
            typer.echo(
                f"{bundle} has version {card.version}: distributions of "
                f"{counted(len(dataset.holdout), 'held-out image')}"
            )
            return
        with image_bar() as progress:
            if only_limits:
                thresholds = Thresholds(accepted=accepted, uncertain=uncertain)
                card = set_limits(bundle, dataset, thresholds, report=typer.echo, progress=progress)
            else:
                card = recalibrate(bundle, dataset, report=typer.echo, progress=progress)
        exponent = f", exponent {card.calibration.exponent}" if card.calibration.exponent else ""
        typer.echo(
            f"{bundle} has version {card.version}: temperature {card.calibration.temperature}{exponent}, score "
            f"{card.out_of_distribution.score.method}, test images accepted {card.metrics.accepted['test']:.1%}"
        )
