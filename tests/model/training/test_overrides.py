import pytest

from model.errors import RecipeError
from model.training.overrides import changed
from model.training.recipes import RECIPES, Recipe, recipe_named

QUICK = recipe_named("quick")


def test_each_value_has_the_type_of_its_field() -> None:
    recipe = changed(QUICK, ["lr=1", "batch_size=128", "amp=false", "flip=random", "sizes=[[0,16],[5,32]]"])
    assert (recipe.lr, recipe.batch_size, recipe.amp, recipe.flip) == (1.0, 128, False, "random")
    assert isinstance(recipe.lr, float)
    assert recipe.sizes == ((0, 16), (5, 32))
    assert set(recipe.changed) == {"lr", "batch_size", "amp", "flip", "sizes"}


def test_one_argument_of_the_network_is_changed() -> None:
    recipe = changed(QUICK, ["arguments.width=32", "arguments.stem=imagenet"])
    assert recipe.arguments == {**QUICK.arguments, "width": 32, "stem": "imagenet"}
    assert recipe.changed == ("arguments",)
    assert changed(QUICK, ['arguments={"width": 8}']).arguments == {"width": 8}


def test_epochs_and_network_are_changed_as_by_their_options() -> None:
    recipe = changed(QUICK, ["epochs=4", "network=resnet50"])
    assert recipe.sizes == QUICK.lasting(4).sizes
    assert recipe.arguments == QUICK.with_network("resnet50").arguments
    assert recipe.changed == ("network", "epochs")


@pytest.mark.parametrize("recipe", [*RECIPES.values(), recipe_named("smoke").lasting(1)], ids=lambda each: each.name)
def test_without_changes_the_recipe_is_the_same(recipe: Recipe) -> None:
    assert changed(recipe, []) == recipe


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("batchsize=3", "a recipe has no field 'batchsize': the nearest are batch_size"),
        ("xyz=1", "a recipe has no field 'xyz': choose one of .*, lr, "),
        ("summary=mine", "a recipe has no field 'summary'"),
        ("lr", "--set lr has no value: write --set FIELD=VALUE"),
        ("lr=fast", r"--set lr=fast is not possible \(it should be a valid number.*\): give lr another value"),
        ("epochs=2.5", "it should be a valid integer"),
        ("batch_size=0", "it should be greater than or equal to 1"),
        ("lr=inf", "it should be a finite number"),
        ("flip=up", "it should be 'random'"),
        ("sizes=x", "Invalid JSON"),
        ("network=vgg", "there is no network 'vgg'"),
        ("crop=64", r"crop \(64\) is larger than resize \(32\): set both"),
        ("resize=5000", r"resize \(5000\) is larger than 4096 pixels: set a smaller one"),
        ("pad=32", r"pad \(32\) must be smaller than resize \(32\)"),
        ("sizes=[[0,8]]", r"the last of sizes, \(\(0, 8\),\), must have crop \(32\) pixels"),
        ("points=[[0,1],[0.5,0]]", "the points of a piecewise schedule must ascend from fraction 0 to 1"),
        ("momentum=0", "nesterov needs momentum"),
        ("patience=2", "patience needs an epoch to keep: --set keep=loss too"),
        ("backbone_lr=2", "it should be less than or equal to 1"),
    ],
)
def test_a_wrong_assignment_is_reported_in_one_sentence(assignment: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence) as caught:
        changed(QUICK, [assignment])
    assert "\n" not in str(caught.value)


def test_the_test_set_selects_no_epoch() -> None:
    with pytest.raises(RecipeError, match="the test set must not select an epoch"):
        changed(recipe_named("article"), ["keep=loss"])
