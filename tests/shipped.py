"""The bundles in weights/."""

import pytest

from tests.app.running import ROOT

SHIPPED = sorted(card.parent for card in (ROOT / "weights").glob("*/card.json"))

for_each_bundle = pytest.mark.parametrize("shipped", SHIPPED, ids=lambda folder: folder.name)
"""Runs a test with the folder of each bundle as `shipped`. Without bundles, pytest skips the test."""
