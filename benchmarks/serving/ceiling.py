"""The engine alone, in a process of its own: python -m benchmarks.serving.ceiling WEIGHTS SECONDS."""

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
_EXTRA_TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Speed of the engine without a service.

    Attributes:
        rate: images per second in batches of `BATCH`.
        latency: median milliseconds of a single image.
        engine: its name, device and precision.
    """

    rate: float
    latency: float
    engine: str


def measure_in_subprocess(weights: Path, seconds: float) -> Ceiling:
    """Measure in a subprocess, which leaves no threads behind.

    Raises:
        ServerError: the subprocess fails.
    """
    command = [sys.executable, "-m", "benchmarks.serving.ceiling", str(weights), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + _EXTRA_TIMEOUT)
    if done.returncode:
        raise ServerError(f"the engine alone fails: {done.stderr.strip()}")
    return Ceiling(**json.loads(done.stdout))


def measure(weights: Path, seconds: float) -> Ceiling:
    """Run batches for one half of the time and single images for the other."""
    classifier = model.load(weights)
    engine, side = classifier.engine, classifier.card.input.crop
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)
    batches = _call_times(engine, pixels, seconds / 2)
    singles = _call_times(engine, pixels[:1], seconds / 2)
    return Ceiling(
        BATCH * len(batches) / sum(batches),
        float(np.median(singles)) * 1000,
        f"{engine.name}, {engine.device}, {engine.precision}",
    )


def _call_times(engine: model.Engine, pixels: NDArray[np.uint8], seconds: float) -> list[float]:
    """Seconds of each call after the first."""
    engine.run(pixels)
    ends = time.perf_counter() + seconds
    times: list[float] = []
    while not times or time.perf_counter() < ends:
        started = time.perf_counter()
        engine.run(pixels)
        times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Path(sys.argv[1]), float(sys.argv[2])))))
