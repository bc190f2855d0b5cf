"""How a batch of any size is split into forward passes of a few fixed sizes."""

from functools import cache


@cache
def split(count: int, sizes: tuple[int, ...], overhead: float) -> tuple[tuple[int, int], ...]:
    """Split a batch into the forward passes that cost the least.

    Args:
        count: images in the batch.
        sizes: that a pass can have, smallest first.
        overhead: what a pass costs besides its images, in units of the cost of one image.

    Returns:
        For each pass the number of images in it and its size. The largest pass comes first; only the last one can
        have room to spare.
    """
    whole, rest = divmod(count, sizes[-1])
    passes = [(sizes[-1], sizes[-1])] * whole
    for size in _cheapest(rest, sizes, overhead):
        passes.append((min(size, rest), size))
        rest -= size
    return tuple(passes)


@cache
def _cheapest(count: int, sizes: tuple[int, ...], overhead: float) -> tuple[int, ...]:
    """The sizes of the cheapest passes that hold `count` images, at most one of the largest size, largest first."""
    if count <= 0:
        return ()
    plans = [tuple(sorted((size, *_cheapest(count - size, sizes, overhead)), reverse=True)) for size in sizes]
    return min(plans, key=lambda plan: sum(plan) + overhead * len(plan))
