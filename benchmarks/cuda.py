"""python -m benchmarks.cuda weights/NAME: forward passes on a GPU with and without CUDA graphs.

It requires only torch, numpy, pydantic, safetensors and Pillow, so it runs without the dependencies of the service.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model import Engine, ModelError
from model.bundle import Bundle, open_bundle
from model.card import InputSpec
from model.classifier import self_test_pixels
from model.engines.cuda import CudaEngine
from model.engines.torch import TorchEngine, load_network
from model.nets.base import Network

BATCHES = (1, 8, 32, 128)
REFERENCE = "eager float32"
ENGINES: Mapping[str, Callable[[Network, InputSpec], Engine]] = {
    REFERENCE: partial(TorchEngine, device="cuda", precision="float32"),
    "eager bfloat16": partial(TorchEngine, device="cuda", precision="bfloat16"),
    "CUDA graphs": CudaEngine,
}


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed with one batch size, from pixels in CPU memory to logits and features in CPU memory.

    Attributes:
        batch: images per call.
        images_per_second: throughput of sequential calls.
        median_ms: median duration of a call in milliseconds.
        p99_ms: 99th percentile of the duration in milliseconds.
    """

    batch: int
    images_per_second: float
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """Results of one engine.

    Attributes:
        engine: its name in `ENGINES`.
        precision: precision of its arithmetic.
        start_seconds: duration of its construction, warm-up included.
        reserved_mib: GPU memory that PyTorch has reserved after all batch sizes.
        difference: largest difference of a logit from float32 on the same GPU, relative to the largest logit.
        speeds: one per batch size.
    """

    engine: str
    precision: str
    start_seconds: float
    reserved_mib: float
    difference: float
    speeds: list[Speed]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the engines on the GPU of this machine. Print a table and a line of JSON.

    Returns:
        The exit code: 1 if there is no GPU or the bundle cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("weights", type=Path, help="folder of the bundle")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration for each batch size (2)")
    parser.add_argument("--autotune", action="store_true", help="let cuDNN select its algorithms by timing them")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("error: no CUDA device was found: run this on a machine with an NVIDIA GPU", file=sys.stderr)
        return 1
    torch.backends.cudnn.benchmark = options.autotune
    try:
        bundle = open_bundle(options.weights)
        results = list(measure(bundle, options.seconds))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary = {
        "model": bundle.card.name,
        "version": bundle.card.version,
        "crop": bundle.card.input.crop,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "autotune": options.autotune,
        "date": datetime.now(UTC).date().isoformat(),
        "engines": [asdict(result) for result in results],
    }
    print(f"{bundle.card.name}, {bundle.card.input.crop} x {bundle.card.input.crop}, on {summary['device']}")
    print(table(results))
    print(json.dumps(summary))
    return 0


def measure(bundle: Bundle, seconds: float) -> Iterator[Result]:
    """A result for each of `ENGINES`. Each batch size is measured for so many seconds."""
    pixels = self_test_pixels(0, max(BATCHES), bundle.card.input.crop)
    reference: NDArray[np.float32] | None = None
    for name, construct in ENGINES.items():
        torch.cuda.empty_cache()
        started = time.perf_counter()
        engine = construct(load_network(bundle), bundle.card.input)
        start_seconds = time.perf_counter() - started
        logits = engine.run(pixels).logits
        if reference is None:
            reference = logits
        yield Result(
            engine=name,
            precision=engine.precision,
            start_seconds=start_seconds,
            difference=float(np.abs(logits - reference).max() / np.abs(reference).max()),
            speeds=[measure_speed(engine, pixels[:batch], seconds) for batch in BATCHES],
            reserved_mib=torch.cuda.memory_reserved() / 2**20,
        )
        del engine


def measure_speed(engine: Engine, pixels: NDArray[np.uint8], seconds: float) -> Speed:
    """Run one batch repeatedly: for a tenth of the seconds to warm up, then measured."""
    for length in (seconds / 10, seconds):
        times = [time.perf_counter()]
        while times[-1] - times[0] < length:
            engine.run(pixels)
            times.append(time.perf_counter())
    calls = np.diff(times)
    median, p99 = np.percentile(calls, [50, 99]) * 1000
    return Speed(len(pixels), len(pixels) / float(calls.mean()), float(median), float(p99))


def table(results: Sequence[Result]) -> str:
    """A table with a line for each engine and batch size."""
    lines = [f"{'engine':<16}{'batch':>6}{'images/s':>12}{'median ms':>11}{'p99 ms':>9}"]
    for result in results:
        lines += [
            f"{result.engine:<16}{speed.batch:>6}{speed.images_per_second:>12,.0f}"
            f"{speed.median_ms:>11.3f}{speed.p99_ms:>9.3f}"
            for speed in result.speeds
        ]
    lines += [
        f"{result.engine}: {result.precision}, ready in {result.start_seconds:.1f} s, {result.reserved_mib:.0f} MiB "
        f"of GPU memory, logits within {result.difference:.2%} of float32's"
        for result in results
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
