"""Which parts of a large image are views, and how much each view counts."""

from collections.abc import Sequence
from functools import cache
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.large import Box


class View(NamedTuple):
    """A part of an image.

    Attributes:
        share: side of the square as a share of the shorter side of the image; 0 for the whole image, squeezed to a
            square.
        x: position, 0 (left) to 1 (right).
        y: position, 0 (top) to 1 (bottom).
    """

    share: float
    x: float
    y: float

    def box(self, width: int, height: int) -> Box:
        """Its place in an image of this size."""
        across, down = (self.share * min(width, height),) * 2 if self.share else (width, height)
        left, top = self.x * (width - across), self.y * (height - down)
        return left, top, left + across, top + down


_CLOSE_UP = View(0.5, 0.5, 0.5)
# After the test transform. The order was chosen by the likelihood of the classes of half A of the photo benchmark.
_OBLONG = (View(0, 0, 0), _CLOSE_UP, View(1, 0, 0), View(1, 1, 1))
_SQUARE = (_CLOSE_UP,)
MAX_VIEWS: Final = 1 + len(_OBLONG)
"""Views of one image, at most."""

FIRST_VIEWS: Final = 2
"""Views that are run before the others. Those of an oblong image show all of it."""

CONFIDENT: Final = 0.98
"""No further views are run of an image whose first views give a class at least this probability. On the photo
benchmark this skips a quarter of the views, and no photo becomes right or wrong by it."""

# An image with a lower ratio of its sides is nearly square: the test transform shows nearly all of it.
_OBLONG_RATIO = 1.1


def further_views(width: int, height: int, *, side: int, count: int) -> tuple[View, ...]:
    """The views of an image besides the test transform.

    Args:
        width: of the image, pixels.
        height: likewise.
        side: to which the test transform resizes the shorter side. Smaller views of an image with a side under twice
            this length would be enlarged, so it has none.
        count: of all views, 1 to `MAX_VIEWS`.
    """
    short, long = sorted((width, height))
    if short < 2 * side:
        return ()
    return (_OBLONG if long >= _OBLONG_RATIO * short else _SQUARE)[: count - 1]


@cache
def view_weights(count: int) -> NDArray[np.float64]:
    """How much each view of an image counts, float64[count] with the sum 1, read-only.

    One view counts twice: the second, which shows the whole image, or the first if there are only two. In a nearly
    square image, which has two at most, the first shows nearly all of it. With equal weights, its close-up reduced the
    accuracy on enlarged images of CIFAR-10, whose objects fill the image.

    Args:
        count: 1 or more views.
    """
    weights = np.ones(count)
    if count > 1:
        weights[0 if count == 2 else 1] = 2
    weights /= weights.sum()
    weights.setflags(write=False)
    return weights


def mean_over_views(values: NDArray[np.floating], counts: Sequence[int]) -> NDArray[np.float64]:
    """The mean over the views of each image by `view_weights`.

    Args:
        values: of all N views, one image after the other, float[N, ...].
        counts: numbers of views of the M images, whose sum is N.

    Returns:
        float64[M, ...].
    """
    weights = np.concatenate([view_weights(count) for count in counts])
    weighted = values * weights.reshape(-1, *(1,) * (values.ndim - 1))
    return np.add.reduceat(weighted, starts_of(counts))


def starts_of(counts: Sequence[int]) -> NDArray[np.int64]:
    """Indices of the first view of each image, int64[M]."""
    return np.cumsum([0, *counts[:-1]])
