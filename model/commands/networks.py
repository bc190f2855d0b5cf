"""The command tenfold networks."""

from importlib.util import find_spec
from typing import Annotated

import typer

from model.commands.exits import exit_codes

_ROW = "{:28} {:>12} {:>14} {:>8}  {:11} {}"


def main(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Also any timm:NAME.  [default: the documented networks]"),
    ] = None,
    recipe: Annotated[str, typer.Option(help="Recipe that determines the image size and the arguments.")] = "quick",
    size: Annotated[int | None, typer.Option(min=1, help="Image size in pixels, instead of the recipe's.")] = None,
) -> None:
    """List networks: parameters, multiply-adds, the last feature map, how /explain works, the extra that they need."""
    with exit_codes():
        from model.nets.sizes import extra_of, size_of
        from model.nets.zoo import BUILDERS, TIMM_NETWORKS
        from model.training.recipes import recipe_named

        chosen = recipe_named(recipe)
        side = size or chosen.crop
        rows = names or [*BUILDERS, *TIMM_NETWORKS]
        typer.echo(f"ten classes, images of {side} x {side} pixels, recipe {recipe}")
        typer.echo(_ROW.format("network", "parameters", "multiply-adds", "map", "explained", "extra"))
        for name in rows:
            extra = extra_of(name)
            if extra and not names and find_spec("timm") is None:
                typer.echo(_ROW.format(name, "-", "-", "-", "-", extra))
                continue
            found = size_of(name, side, chosen.with_network(name).network_arguments(10))
            cells = "{}x{}".format(*found.cells)
            numbers = f"{found.parameters / 1e6:.1f} M", f"{found.multiply_adds / 1e6:,.0f} M"
            typer.echo(_ROW.format(name, *numbers, cells, found.explained, extra).rstrip())
