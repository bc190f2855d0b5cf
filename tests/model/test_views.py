"""The views of an image: which parts, and how much each counts."""

import numpy as np
import pytest

from model.views import MAX_VIEWS, further_views, mean_over_views, view_weights


@pytest.mark.parametrize(("width", "height"), [(640, 480), (480, 640), (100, 4000), (300, 300), (310, 300)])
def test_views_lie_inside_the_image_and_fewer_are_the_first_ones(width: int, height: int) -> None:
    every = further_views(width, height, side=32, count=MAX_VIEWS)
    assert len(every) == (1 if width in (300, 310) else MAX_VIEWS - 1)
    for count in range(1, MAX_VIEWS + 1):
        assert further_views(width, height, side=32, count=count) == every[: count - 1]
    for view in every:
        left, top, right, bottom = view.box(width, height)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_the_weights_of_the_views_are_positive_with_the_sum_1_and_one_counts_twice() -> None:
    for count in range(1, 12):
        weights = view_weights(count)
        assert weights.shape == (count,)
        assert weights.sum() == pytest.approx(1)
        if count > 1:
            twice = 0 if count == 2 else 1
            np.testing.assert_allclose(weights[twice], 2 * np.delete(weights, twice))
    with pytest.raises(ValueError, match="read-only"):
        view_weights(3)[0] = 1


def test_the_mean_over_the_views_of_each_image() -> None:
    values = np.array([[1, 10], [2, 20], [8, 80], [3, 0], [5, 0], [9, 0]], np.float32)
    expected = np.array([[1, 10], [4, 40], [(3 + 2 * 5 + 9) / 4, 0]])
    np.testing.assert_allclose(mean_over_views(values, [1, 2, 3]), expected)
    np.testing.assert_allclose(mean_over_views(values[:, 0], [1, 2, 3]), expected[:, 0])
    np.testing.assert_array_equal(mean_over_views(values, [1] * 6), values)
