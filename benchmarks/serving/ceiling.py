"""The network alone, in a process of its own: python -m benchmarks.serving.ceiling WEIGHTS SECONDS."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import model
from benchmarks.serving.servers import ServerError

BATCH = 32
_PATIENCE = 300.0


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the engine does when nobody disturbs it.

    Attributes:
        rate: pictures a second in batches of `BATCH`.
        latency: median milliseconds of one picture alone.
        engine: that did it, on what and in which precision.
    """

    rate: float
    latency: float
    engine: str


def measure_apart(weights: Path, seconds: float) -> Ceiling:
    """Measure it in a fresh process, so that its threads are gone afterwards.

    Raises:
        ServerError: it fails.
    """
    command = [sys.executable, "-m", "benchmarks.serving.ceiling", str(weights), str(seconds)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + _PATIENCE)
    if ran.returncode:
        raise ServerError(f"the network alone fails: {ran.stderr.strip()}")
    return Ceiling(**json.loads(ran.stdout))


def measure(weights: Path, seconds: float) -> Ceiling:
    """Run batches for half of the time, and single pictures for the other."""
    classifier = model.load(weights)
    engine, side = classifier.engine, classifier.card.input.crop
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    batches = _timed(engine, pixels, seconds / 2)
    singles = _timed(engine, pixels[:1], seconds / 2)
    return Ceiling(
        BATCH * len(batches) / sum(batches),
        float(np.median(singles)) * 1000,
        f"{engine.name}, {engine.device}, {engine.precision}",
    )


def _timed(engine: model.Engine, pixels: NDArray[np.uint8], seconds: float) -> list[float]:
    """Seconds of each call; the first does not count."""
    engine.run(pixels)
    ends = time.perf_counter() + seconds
    taken: list[float] = []
    while not taken or time.perf_counter() < ends:
        began = time.perf_counter()
        engine.run(pixels)
        taken.append(time.perf_counter() - began)
    return taken


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Path(sys.argv[1]), float(sys.argv[2])))))
