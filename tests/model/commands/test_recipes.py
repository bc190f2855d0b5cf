from dataclasses import fields

from model.commands.recipes import main
from model.training.recipes import RECIPES, Recipe
from tests.model.commands.inprocess import invoke


def test_the_recipes_are_listed_with_their_summaries() -> None:
    lines = invoke(main).stdout.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [[recipe.name, recipe.summary] for recipe in RECIPES.values()]


def test_the_fields_of_a_recipe_are_those_that_can_be_set() -> None:
    rows = dict(line.split(maxsplit=1) for line in invoke(main, "quick").stdout.splitlines())
    assert rows.keys() == {field.name for field in fields(Recipe)} - {"name", "summary", "changed"}
    assert (rows["batch_size"], rows["flip"]) == ("250", "alternating")


def test_an_unknown_recipe_is_an_error() -> None:
    result = invoke(main, "slow")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: there is no recipe 'slow': choose one of")
