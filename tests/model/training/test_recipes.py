import pytest

from model.errors import RecipeError
from model.training.recipes import RECIPES, recipe_named


def test_an_unknown_recipe_is_answered_with_the_names() -> None:
    with pytest.raises(RecipeError, match="'slow'") as caught:
        recipe_named("slow")
    assert all(name in str(caught.value) for name in RECIPES)


def test_the_article_is_followed_to_the_letter() -> None:
    recipe = recipe_named("article")
    assert (recipe.network, recipe.stem, recipe.width, recipe.conv_bias) == ("resnet18", "cifar", 64, True)
    assert (recipe.resize, recipe.crop, recipe.flip, recipe.cutout) == (256, 224, "random", 0)
    assert (recipe.mean, recipe.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum) == (300, 32, 0.1, 0.9)
    assert (recipe.milestones, recipe.gamma, recipe.weight_decay) == ((150, 225), 0.1, 1e-4)
    assert (recipe.nesterov, recipe.amp, recipe.ema_decay, recipe.label_smoothing) == (False, False, 0, 0)
    assert (recipe.holdout, recipe.watch) == (0, "test")


def test_the_turning_points_move_with_the_number_of_epochs() -> None:
    assert recipe_named("article").lasting(30).milestones == (15, 22)
    assert recipe_named("article").lasting(1).milestones == (1, 1), "a trial runs at the first rate"
    shorter = recipe_named("smoke").lasting(4)
    assert (shorter.epochs, shorter.sizes) == (4, ((0, 16), (2, 32)))


def test_the_side_of_an_epoch_is_that_of_the_last_turning_point() -> None:
    recipe = recipe_named("smoke")
    assert [recipe.side_at(epoch) for epoch in range(recipe.epochs)] == [16] * 5 + [32] * 3
    assert recipe_named("article").side_at(0) == 224


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_recipe_ends_at_the_side_that_it_is_tested_at(recipe: object) -> None:
    found = recipe_named(recipe.name)  # type: ignore[attr-defined]
    spec = found.input_spec()
    assert (spec.resize, spec.crop, spec.mean, spec.std) == (found.resize, found.crop, found.mean, found.std)
    assert found.side_at(found.epochs - 1) == spec.crop


def test_only_the_article_looks_at_the_test_set_before_the_end() -> None:
    assert [name for name, recipe in RECIPES.items() if recipe.watch == "test"] == ["article"]
