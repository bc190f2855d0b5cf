import pytest

from model.errors import RecipeError
from model.nets.base import count_multiply_adds, count_parameters
from model.nets.zoo import BUILDERS, accepts, build


def test_resnet18_for_cifar_has_the_known_size() -> None:
    assert count_parameters(build("resnet18")) == 11_173_962


def test_the_articles_biases_add_3840_parameters() -> None:
    assert count_parameters(build("resnet18", conv_bias=True)) == 11_173_962 + 3_840


@pytest.mark.parametrize(
    ("name", "stem", "side", "giga"),
    [
        ("resnet18", "cifar", 32, 0.56),
        ("resnet18", "cifar", 224, 27.2),
        ("resnet18", "imagenet", 224, 1.81),  # torchvision's table
        ("resnet50", "imagenet", 224, 4.09),
    ],
)
def test_multiply_adds_of_one_image(name: str, stem: str, side: int, giga: float) -> None:
    net = build(name, stem=stem, num_classes=10 if stem == "cifar" else 1000)
    assert count_multiply_adds(net, side) / 1e9 == pytest.approx(giga, abs=0.02)


def test_the_error_for_an_unknown_network_lists_the_names() -> None:
    with pytest.raises(RecipeError, match="vgg16") as caught:
        build("vgg16")
    assert all(name in str(caught.value) for name in BUILDERS)
    with pytest.raises(RecipeError, match="vgg16"):
        accepts("vgg16", "stem")


@pytest.mark.parametrize(
    ("name", "nearest"), [("resnet15", "resnet152"), ("resnext50", "resnext50_32x4d"), ("pvt_v2_b0", "timm:pvt_v2_b0")]
)
def test_the_error_for_an_unknown_network_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError, match=f"there is no network '{name}': did you mean .*{nearest}"):
        build(name)


@pytest.mark.parametrize("arguments", [{"stem": "mnist"}, {"colour": 3}])
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="cannot be built"):
        build("resnet18", **arguments)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_network_takes_a_number_of_classes(name: str) -> None:
    assert accepts(name, "num_classes")
    assert not accepts(name, "colour")


def test_it_is_known_which_arguments_a_network_takes() -> None:
    assert accepts("resnet18", "stem")
    assert not accepts("resnet18", "block"), "the table sets it"
