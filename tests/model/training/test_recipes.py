import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from model.card import read_card
from model.classifier import Classifier
from model.errors import RecipeError
from model.nets.zoo import build
from model.training.recipes import RECIPES, Recipe, recipe_named


def test_the_error_for_an_unknown_recipe_lists_the_names() -> None:
    with pytest.raises(RecipeError, match="'slow'") as caught:
        recipe_named("slow")
    assert all(name in str(caught.value) for name in RECIPES)


def test_the_article_is_followed_exactly() -> None:
    recipe = recipe_named("article")
    assert recipe.network == "resnet18"
    assert recipe.arguments == {"stem": "cifar", "width": 64, "conv_bias": True}
    assert (recipe.resize, recipe.crop, recipe.flip, recipe.cutout) == (256, 224, "random", 0)
    assert (recipe.mean, recipe.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum) == (300, 32, 0.1, 0.9)
    assert (recipe.milestones, recipe.gamma, recipe.weight_decay) == ((150, 225), 0.1, 1e-4)
    assert (recipe.nesterov, recipe.amp, recipe.ema_decay, recipe.label_smoothing) == (False, False, 0, 0)
    assert (recipe.holdout, recipe.watch) == (0, "test")


def test_the_turning_points_move_with_the_number_of_epochs() -> None:
    assert recipe_named("article").lasting(30).milestones == (15, 22)
    assert recipe_named("article").lasting(1).milestones == (1, 1), "one epoch runs at the first rate"
    shorter = recipe_named("smoke").lasting(4)
    assert (shorter.epochs, shorter.sizes) == (4, ((0, 16), (2, 32)))


def test_the_side_of_an_epoch_is_that_of_the_last_turning_point() -> None:
    recipe = recipe_named("smoke")
    assert [recipe.side_at(epoch) for epoch in range(recipe.epochs)] == [16] * 5 + [32] * 3
    assert recipe_named("article").side_at(0) == 224


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_recipe_ends_at_the_image_size_of_the_test(recipe: Recipe) -> None:
    spec = recipe.input_spec()
    assert (spec.resize, spec.crop, spec.mean, spec.std) == (recipe.resize, recipe.crop, recipe.mean, recipe.std)
    assert recipe.side_at(recipe.epochs - 1) == spec.crop


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_needs_initial_weights_if_its_summary_names_them(recipe: Recipe) -> None:
    assert recipe.needs_init == ("--init" in recipe.summary)


def test_the_article_alone_evaluates_the_test_set_in_every_epoch() -> None:
    assert recipe_named("article").watch == "test"
    assert all(recipe_named(name).watch == "holdout" for name in ("smoke", "quick", "restart", "polish", "best"))


def test_the_images_held_out_for_a_bundle_are_held_out_again(folder_bundle: Path, tiny_classifier: Classifier) -> None:
    recipe = replace(recipe_named("transfer"), holdout_share=0.3)
    card = read_card(folder_bundle / "card.json")
    training = card.training.model_copy(
        update={"recipe": {**card.training.recipe, "holdout_share": 0.2, "test_share": 0.4}}
    )
    again = recipe.for_bundle(card.model_copy(update={"training": training}))
    assert (again.holdout_share, again.test_share) == (0.2, 0.4)
    assert recipe.for_bundle(tiny_classifier.card).holdout_share == 0.3, "it was not trained on a folder"


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipe_is_hashable_and_its_fields_survive_json(recipe: Recipe) -> None:
    assert hash(recipe) == hash(replace(recipe))
    assert replace(recipe) == recipe
    fields = json.loads(json.dumps(asdict(recipe)))
    assert fields["arguments"] == recipe.arguments
    assert fields["network"] == recipe.network


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_recipes_network_can_be_built(recipe: Recipe) -> None:
    assert build(recipe.network, **recipe.network_arguments(7)).num_classes == 7


@pytest.mark.usefixtures("own_networks")
def test_another_network_keeps_the_arguments_that_it_takes() -> None:
    recipe = recipe_named("quick")
    assert recipe.with_network("resnet50").arguments == recipe.arguments
    assert recipe.with_network("resnet50", stem="imagenet").arguments == {**recipe.arguments, "stem": "imagenet"}
    assert recipe.with_network("plain").arguments == {"width": 64}
    assert recipe.with_network("plain", stem="cifar").arguments == {"width": 64, "stem": "cifar"}, "as requested"
    assert recipe.arguments == {"stem": "cifar", "width": 64, "zero_init_residual": True}
    with pytest.raises(RecipeError, match="no network 'vgg'"):
        recipe.with_network("vgg")


def test_the_sides_of_a_recipe_are_those_of_its_epochs() -> None:
    assert recipe_named("smoke").sides() == {16, 32}
    assert recipe_named("article").sides() == {224}
    assert replace(recipe_named("smoke"), sizes=((0, 16), (99, 20))).sides() == {16}
