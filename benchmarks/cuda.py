"""The CUDA benchmark: python -m benchmarks.cuda weights/NAME, forward passes on a GPU with CUDA graphs and without.

It needs torch, numpy, pydantic, safetensors and Pillow only, so it runs where the service is not installed.
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
EXACT = "eager float32"
ENGINES: Mapping[str, Callable[[Network, InputSpec], Engine]] = {
    EXACT: partial(TorchEngine, device="cuda", precision="float32"),
    "eager bfloat16": partial(TorchEngine, device="cuda", precision="bfloat16"),
    "CUDA graphs": CudaEngine,
}


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one batch size, from pixels in the CPU's memory to logits and features there.

    Attributes:
        batch: pictures in a call.
        pictures_per_second: of calls one after the other.
        median_ms: milliseconds of a call.
        p99_ms: what 99 of 100 calls stay within.
    """

    batch: int
    pictures_per_second: float
    median_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Result:
    """Of one engine.

    Attributes:
        engine: its name in `ENGINES`.
        precision: of its arithmetic.
        start_seconds: until it was ready, warmed up.
        reserved_mib: of the GPU's memory that PyTorch held after all batch sizes.
        difference: largest of a logit from float32's on the same GPU, as a share of the largest logit.
        speeds: by batch size.
    """

    engine: str
    precision: str
    start_seconds: float
    reserved_mib: float
    difference: float
    speeds: list[Speed]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the engines on this machine's GPU: a table, then a line of JSON.

    Returns:
        The exit code: 1 if there is no GPU or no such bundle.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("weights", type=Path, help="folder of the bundle")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each batch size is measured for (2)")
    parser.add_argument(
        "--autotune", action="store_true", help="let cuDNN time its algorithms at start, instead of guessing the best"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("There is no CUDA device here: run this on a machine with an NVIDIA GPU.", file=sys.stderr)
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
    """One result for each of `ENGINES`, every batch size timed for so many seconds."""
    pixels = self_test_pixels(0, max(BATCHES), bundle.card.input.crop)
    exact: NDArray[np.float32] | None = None
    for name, construct in ENGINES.items():
        torch.cuda.empty_cache()
        began = time.perf_counter()
        engine = construct(load_network(bundle), bundle.card.input)
        start_seconds = time.perf_counter() - began
        logits = engine.run(pixels).logits
        if exact is None:
            exact = logits
        yield Result(
            engine=name,
            precision=engine.precision,
            start_seconds=start_seconds,
            difference=float(np.abs(logits - exact).max() / np.abs(exact).max()),
            speeds=[timed(engine, pixels[:batch], seconds) for batch in BATCHES],
            reserved_mib=torch.cuda.memory_reserved() / 2**20,
        )
        del engine


def timed(engine: Engine, pixels: NDArray[np.uint8], seconds: float) -> Speed:
    """Run one batch again and again, for a tenth of the seconds unmeasured, then measured."""
    for length in (seconds / 10, seconds):
        moments = [time.perf_counter()]
        while moments[-1] - moments[0] < length:
            engine.run(pixels)
            moments.append(time.perf_counter())
    calls = np.diff(moments)
    median, p99 = np.percentile(calls, [50, 99]) * 1000
    return Speed(len(pixels), len(pixels) / float(calls.mean()), float(median), float(p99))


def table(results: Sequence[Result]) -> str:
    """For people: a line for each engine and batch size."""
    lines = [f"{'engine':<16}{'batch':>6}{'pictures/s':>12}{'median ms':>11}{'p99 ms':>9}"]
    for result in results:
        lines += [
            f"{result.engine:<16}{speed.batch:>6}{speed.pictures_per_second:>12,.0f}"
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
