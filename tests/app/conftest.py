"""Fixtures of the service's tests."""

from collections.abc import Iterator

import pytest

from tests.app.running import Running, serving


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service with the default limits, shared by the tests of a module, which must not change it."""
    with serving() as running:
        yield running
