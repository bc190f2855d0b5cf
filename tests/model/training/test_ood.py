import numpy as np
import pytest
from numpy.typing import NDArray

from model.training.ood import KINDS, others


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def made(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    return others(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_as_many_images_of_the_same_size(kind: str, made: dict[str, NDArray[np.uint8]]) -> None:
    assert list(made) == list(KINDS)
    assert made[kind].shape == (12, 32, 32, 3)
    assert made[kind].dtype == np.uint8
    assert len(np.unique(made[kind].reshape(12, -1), axis=0)) == 12, "all are different"


def test_images_of_any_size_are_made() -> None:
    made = others(np.zeros((2, 35, 35, 3), np.uint8))
    assert {kind: images.shape[1] for kind, images in made.items()} == {
        "shuffled tiles": 32, "drawn shapes": 35, "coloured noise": 35,
    }  # fmt: skip


def test_they_are_the_same_in_each_call(pixels: NDArray[np.uint8], made: dict[str, NDArray[np.uint8]]) -> None:
    before = pixels.copy()
    again = others(pixels)
    assert all(np.array_equal(again[kind], made[kind]) for kind in KINDS)
    assert np.array_equal(pixels, before), "the input is not changed"


def test_the_kinds_differ(made: dict[str, NDArray[np.uint8]]) -> None:
    kinds = list(made.values())
    for i, one in enumerate(kinds):
        for other in kinds[i + 1 :]:
            assert np.abs(one.astype(int) - other).mean() > 20


def test_shuffled_tiles_are_the_tiles_of_the_image_in_another_order(
    pixels: NDArray[np.uint8], made: dict[str, NDArray[np.uint8]]
) -> None:
    orders = set()
    for before, after in zip(pixels, made["shuffled tiles"], strict=True):
        tiles = [
            [
                image[row : row + 8, column : column + 8].tobytes()
                for row in range(0, 32, 8)
                for column in range(0, 32, 8)
            ]
            for image in (before, after)
        ]
        assert sorted(tiles[0]) == sorted(tiles[1])
        orders.add(tuple(tiles[0].index(tile) for tile in tiles[1]))
    assert len(orders) == 12, "each image has its own order"
    assert tuple(range(16)) not in orders


def test_shapes_and_noise_do_not_depend_on_the_images(
    pixels: NDArray[np.uint8], made: dict[str, NDArray[np.uint8]]
) -> None:
    blank = others(np.zeros_like(pixels))
    for kind in ("drawn shapes", "coloured noise"):
        assert np.array_equal(blank[kind], made[kind])


def test_noise_has_the_full_range_of_each_colour(made: dict[str, NDArray[np.uint8]]) -> None:
    noise = made["coloured noise"]
    assert (noise.min(axis=(1, 2)) == 0).all()
    assert (noise.max(axis=(1, 2)) >= 254).all()
    steps = np.abs(np.diff(noise.astype(int), axis=2)).mean(axis=(1, 2, 3))
    assert steps.max() > 4 * steps.min(), "from fine grain to blurs"
