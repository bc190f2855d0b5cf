from itertools import pairwise

import pytest

from model.engines.passes import split

SIZES = (1, 2, 4, 8, 16, 32)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, (1,)), (3, (2, 1)), (7, (8,)), (13, (8, 4, 1)), (15, (16,)), (18, (16, 2)), (31, (32,)), (70, (32, 32, 4, 2))],
)
def test_the_cheapest_passes_are_chosen(count: int, sizes: tuple[int, ...]) -> None:
    assert tuple(size for _, size in split(count, SIZES, 0.6)) == sizes


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, [(1, 1)]),
        (3, [(3, 4)]),
        (32, [(32, 32)]),
        (40, [(40, 64)]),
        (128, [(128, 128)]),
        (129, [(128, 128), (1, 1)]),
        (300, [(128, 128), (128, 128), (44, 64)]),
    ],
)
def test_a_large_overhead_gives_as_few_passes_as_possible(count: int, expected: list[tuple[int, int]]) -> None:
    assert list(split(count, (1, 2, 4, 8, 16, 32, 64, 128), 128)) == expected


@pytest.mark.parametrize("overhead", [0, 0.6, 5, 32])
def test_every_image_is_in_one_pass_and_only_the_last_pass_is_padded(overhead: float) -> None:
    for count in range(400):
        passes = split(count, SIZES, overhead)
        assert sum(images for images, _ in passes) == count
        assert all(images == size for images, size in passes[:-1])
        assert all(1 <= images <= size for images, size in passes)
        assert all(larger >= smaller for (_, larger), (_, smaller) in pairwise(passes))


def test_no_other_split_costs_less() -> None:
    def cost(sizes: tuple[int, ...]) -> float:
        return sum(sizes) + 0.6 * len(sizes)

    def every(count: int) -> list[tuple[int, ...]]:
        return [(size, *rest) for size in SIZES for rest in every(count - size)] if count > 0 else [()]

    for count in range(1, 13):
        chosen = cost(tuple(size for _, size in split(count, SIZES, 0.6)))
        assert chosen == pytest.approx(min(map(cost, every(count))))
