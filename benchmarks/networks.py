"""python -m benchmarks.networks: images per second of the networks with each engine on the CPU.

The weights are random, which does not change the speed. Requires the extras train, zoo and onnx.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import openvino
import torch

from model import Engine, InputSpec, ModelError
from model.classifier import self_test_pixels
from model.engines.onnx import OnnxEngine
from model.engines.openvino import OpenVinoEngine
from model.engines.torch import TorchEngine
from model.nets.base import Network
from model.nets.sizes import NetworkSize, extra_of, size_of
from model.nets.zoo import BUILDERS, TIMM, TIMM_NETWORKS, build
from model.training.exchange import onnx_model
from model.training.quantize import converted, quantized
from model.training.recipes import CIFAR10_MEAN, CIFAR10_STD

BATCH = 32
ENGINES = ("torch", "openvino float16", "openvino int8", "onnx")
# The smallest side whose last feature map has 4 x 4 cells, by the stride of the network.
SIDES = {"own": 32, "timm": 128}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the networks, and print the rows of the table in docs/networks.md.

    Returns:
        The exit code: 1 if a network cannot be built.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("names", nargs="*", help="networks (the documented ones)")
    parser.add_argument("--size", type=int, help="side of the images in pixels (32, and 128 for networks of timm)")
    parser.add_argument("--rounds", type=int, default=5, help="batches per engine, of which the fastest counts (5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of each engine")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"| network | images | parameters | multiply-adds | extra | explained | {' | '.join(ENGINES)} |")
    print(f"|{'---|' * (6 + len(ENGINES))}")
    for name in options.names or (*BUILDERS, *TIMM_NETWORKS):
        side = options.size or SIDES["timm" if name.startswith(TIMM) else "own"]
        try:
            size = size_of(name, side, {"num_classes": 10})
            net = build(name, num_classes=10).eval()
        except ModelError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        spec = InputSpec(resize=side, crop=side, interpolation="bilinear", mean=CIFAR10_MEAN, std=CIFAR10_STD)
        rates = [measure_rate(engine, side, options.rounds) for engine in engines(net, spec, options.threads)]
        print(row(name, side, size, rates), flush=True)
    return 0


def engines(net: Network, spec: InputSpec, threads: int) -> Iterator[Engine]:
    """The engines of `ENGINES` with this network, one after the other."""
    pixels = self_test_pixels(0, BATCH, spec.crop)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        path.write_bytes(onnx_model(net, spec).SerializeToString())
        model = converted(net, spec)
        yield TorchEngine(net, spec, device="cpu")
        with redirect_stdout(io.StringIO()):  # NNCF shows its progress
            small = quantized(model, pixels, spec)
        for each, int8 in ((model, False), (small, True)):
            openvino.save_model(each, path.with_suffix(".xml"))
            yield OpenVinoEngine(path.with_suffix(".xml"), spec.crop, int8=int8, threads=threads)
        yield OnnxEngine(path, threads=threads)


def measure_rate(engine: Engine, side: int, rounds: int) -> float:
    """Images per second in the fastest of `rounds` batches, after one batch to warm up."""
    pixels = self_test_pixels(0, BATCH, side)
    seconds = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        engine.run(pixels)
        seconds.append(time.perf_counter() - began)
    return BATCH / min(seconds[1:])


def row(name: str, side: int, size: NetworkSize, rates: Sequence[float]) -> str:
    """The row of a network in Markdown."""
    cells = (
        f"`{name}`",
        f"{side} x {side}",
        f"{size.parameters / 1e6:.1f} M",
        f"{size.multiply_adds / 1e6:,.0f} M",
        f"`{extra_of(name)}`" if extra_of(name) else "",
        size.explained,
        *(f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}" for rate in rates),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
