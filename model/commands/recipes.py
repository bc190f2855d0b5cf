"""The command tenfold recipes."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from model.commands.exits import exit_codes
from model.training.recipes import RECIPES, recipe_named

_NOT_SET = ("name", "summary", "changed")


def main(
    name: Annotated[str | None, typer.Argument(help="Recipe whose fields are listed, as --set takes them.")] = None,
) -> None:
    """List the training recipes and what each is for, or the fields of one."""
    with exit_codes():
        if name is None:
            rows = {recipe.name: recipe.summary for recipe in RECIPES.values()}
        else:
            fields = {field: value for field, value in asdict(recipe_named(name)).items() if field not in _NOT_SET}
            rows = {field: value if isinstance(value, str) else json.dumps(value) for field, value in fields.items()}
        width = max(map(len, rows))
        for left, right in rows.items():
            typer.echo(f"{left:{width}}  {right}")
