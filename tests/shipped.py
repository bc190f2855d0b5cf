"""The bundles in weights/ that are part of the repository."""

import pytest

from tests.app.running import ROOT

NAMES = ("resnet18-cifar10", "resnet9-cifar10")

SHIPPED = [ROOT / "weights" / name for name in NAMES if (ROOT / "weights" / name / "card.json").exists()]

for_each_bundle = pytest.mark.parametrize("shipped", SHIPPED, ids=lambda folder: folder.name)
"""Runs a test with the folder of each bundle as `shipped`. Without bundles, pytest skips the test."""
