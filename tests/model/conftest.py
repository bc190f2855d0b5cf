"""Networks that are no ResNets, in the table of networks."""

from collections.abc import Iterator

import pytest

from model.nets.zoo import BUILDERS
from tests.model.nets.plain import MixedNetwork, PlainCNN

OWN = {"plain": PlainCNN, "mixed": MixedNetwork}


@pytest.fixture
def own_networks() -> Iterator[list[str]]:
    """The names under which they can be built while the fixture lives."""
    BUILDERS.update(OWN)
    yield list(OWN)
    for name in OWN:
        del BUILDERS[name]
