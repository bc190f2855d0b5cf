"""Tenfold with an engine that does nothing, to measure the cost of the service itself."""

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.memory import limit_kept_memory
from app.process.fronts import serve_part, supervise
from app.process.server import serve
from app.settings import Settings
from app.telemetry.logs import logging_to_stderr
from model import Classifier, ModelCard
from model.bundle import CARD_FILE
from model.calibration import OutOfDistributionScore
from model.card import read_card
from model.engines.base import Outputs


class InstantEngine:
    """Returns the same logits, features and maps for every image."""

    name = "instant"
    device = "none"
    precision = "none"
    preferred_batch = 32

    def __init__(self, card: ModelCard) -> None:
        self._logits = np.linspace(0, 1, len(card.labels), dtype=np.float32)
        self._features = np.ones(OutOfDistributionScore(card.out_of_distribution).width or 1, np.float32)

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        count = len(pixels)
        maps = np.zeros((count, len(self._logits), 4, 4), np.float32)
        return Outputs(np.tile(self._logits, (count, 1)), np.tile(self._features, (count, 1)), maps)


def instant_classifier(weights: Path) -> Classifier:
    """A classifier with the card of the bundle and that engine."""
    card = read_card(weights / CARD_FILE)
    return Classifier(card, InstantEngine(card))


if __name__ == "__main__":
    limit_kept_memory()
    settings = Settings()
    with logging_to_stderr(settings.log_level, settings.log_format):
        classifier = instant_classifier(settings.weights)
        load = {classifier.card.name: lambda: classifier}
        if arguments := sys.argv[1:]:
            code = serve_part(settings, arguments, load=load)
        elif settings.workers > 1:
            code = supervise(settings, (sys.executable, "-m", "benchmarks.serving.peers.front"))
        else:
            code = serve(settings, load=load)
    os._exit(code)  # like python -m app
