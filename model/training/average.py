"""The mean of the weights of two networks, one of which was trained further from the other."""

import copy

from model.nets.base import Network
from model.training.pretrained import Init, start_from


def average(net: Network, other: Init, share: float) -> None:
    """Replace the weights of `net` by a weighted mean with those of another network.

    The mean keeps most of what each network is better at, if both descend from the same weights: Wortsman et al. 2022,
    "Robust fine-tuning of zero-shot models", arXiv:2109.01903. The statistics of BatchNorm layers are averaged too.

    Args:
        net: the trained network.
        other: state dict of the other one.
        share: of the other one in the mean, 0..1.

    Raises:
        RecipeError: the state dict belongs to another network.
    """
    given = copy.deepcopy(net)
    start_from(given, other.state, option="--average-with", other_classes=False)
    for own, value in zip(net.state_dict().values(), given.state_dict().values(), strict=True):
        if own.is_floating_point():
            own.lerp_(value, share)
