"""Changes of a recipe's fields from text: --set lr=0.1 --set batch_size=128."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from model.card import MAX_SIDE
from model.errors import RecipeError
from model.training.recipes import Argument, Recipe

_FIXED = {"name", "summary", "changed"}
_HINTS = {name: hint for name, hint in get_type_hints(Recipe, include_extras=True).items() if name not in _FIXED}
_SEVERAL = (tuple, Mapping)
_ARGUMENT = "arguments."


def changed(recipe: Recipe, assignments: Sequence[str]) -> Recipe:
    """The recipe with other values of some fields, which `Recipe.changed` then names.

    Another number of epochs moves the milestones and sizes in proportion, as with --epochs. Another network keeps the
    arguments that its builder takes, as with --network.

    Args:
        recipe: to change.
        assignments: texts "FIELD=VALUE", or "arguments.NAME=VALUE" for one argument of the network's builder. The
            values of fields with several values are JSON, such as "sizes=[[0, 16], [5, 32]]".

    Raises:
        RecipeError: there is no such field, a value is not allowed, or the fields contradict each other.
    """
    values: dict[str, Any] = {}
    arguments: dict[str, Argument] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise RecipeError(f"--set {assignment} has no value: write --set FIELD=VALUE, such as --set lr=0.1")
        if name.startswith(_ARGUMENT):
            arguments[name.removeprefix(_ARGUMENT)] = _argument(text)
        else:
            values[name] = _value(name, text)
    names = {*values, *(["arguments"] if arguments else [])}
    if "epochs" in values:
        recipe = recipe.lasting(values.pop("epochs"))
    if "network" in values:
        recipe = recipe.with_network(values.pop("network"))
    recipe = replace(recipe, **values)
    recipe = replace(
        recipe,
        arguments={**recipe.arguments, **arguments},
        changed=tuple(field.name for field in fields(recipe) if field.name in {*recipe.changed, *names}),
    )
    _check(recipe)
    return recipe


def _value(name: str, text: str) -> Any:
    """The value of a field, of its type."""
    if name not in _HINTS:
        near = difflib.get_close_matches(name, _HINTS, n=3, cutoff=0.5)
        hint = f"the nearest are {', '.join(near)}" if near else f"choose one of {', '.join(_HINTS)}"
        raise RecipeError(f"a recipe has no field {name!r}: {hint}")
    kind: TypeAdapter[Any] = TypeAdapter(_HINTS[name])
    try:
        return kind.validate_json(text) if get_origin(_HINTS[name]) in _SEVERAL else kind.validate_strings(text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].replace("Input should", "it should").partition(":")[0]
        raise RecipeError(f"--set {name}={text} is not possible ({reason}): give {name} another value") from error


def _argument(text: str) -> Argument:
    """A JSON value, or else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text


def _check(recipe: Recipe) -> None:
    """Refuse fields that contradict each other.

    Raises:
        RecipeError: one sentence about the first contradiction.
    """
    for wrong, sentence in (
        (
            recipe.crop > recipe.resize,
            f"crop ({recipe.crop}) is larger than resize ({recipe.resize}): set both, such as --set resize="
            f"{recipe.crop} --set crop={recipe.crop}",
        ),
        (recipe.resize > MAX_SIDE, f"resize ({recipe.resize}) is larger than {MAX_SIDE} pixels: set a smaller one"),
        (recipe.pad >= recipe.resize, f"pad ({recipe.pad}) must be smaller than resize ({recipe.resize}): set pad"),
        (
            recipe.sizes and recipe.sizes[-1][1] != recipe.crop,
            f"the last of sizes, {recipe.sizes[-1:]}, must have crop ({recipe.crop}) pixels: set both, or --set "
            "sizes=[] to train at one size",
        ),
        (
            recipe.schedule == "piecewise" and not _is_complete(recipe.points),
            "the points of a piecewise schedule must ascend from fraction 0 to 1: set points, such as --set "
            "points=[[0,1],[1,0]]",
        ),
        (
            recipe.keep != "last" and recipe.watch == "test",
            "the test set must not select an epoch: --set watch=holdout and hold out images, or --set keep=last",
        ),
        (recipe.patience and recipe.keep == "last", "patience needs an epoch to keep: --set keep=loss too"),
        (recipe.nesterov and not recipe.momentum, "nesterov needs momentum: --set nesterov=false too"),
    ):
        if wrong:
            raise RecipeError(sentence)


def _is_complete(points: Sequence[tuple[float, float]]) -> bool:
    fractions = [fraction for fraction, _ in points]
    return len(points) > 1 and (fractions[0], fractions[-1]) == (0, 1) and fractions == sorted(fractions)
