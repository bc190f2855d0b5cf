"""Clients, and a generator of clients, that `make clients` installs apart from the other requirements."""

import sys
from pathlib import Path

import pytest

_ENVIRONMENT = Path(sys.prefix)


def kserve_python() -> Path:
    """The interpreter of the environment with kserve. A test that needs it is skipped without it."""
    return _installed("kserve/bin/python")


def mlserver_types() -> Path:
    """The folder of the types of MLServer. A test that needs them is skipped without them."""
    return _installed("mlserver/mlserver/types")


def client_generator() -> Path:
    """The interpreter of the environment with openapi-python-client. A test that needs it is skipped without it."""
    return _installed("openapi/bin/python")


def _installed(name: str) -> Path:
    path = _ENVIRONMENT / name
    if not path.exists():
        pytest.skip(f"{path} is missing: run make clients")
    return path
