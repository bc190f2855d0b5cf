"""CPU time per image of the engine process and of a front, without HTTP and without a network.

python -m benchmarks.serving.wire_cost starts an engine process with an engine that does nothing, and sends it images of
one view from this process, several at once.
"""

import argparse
import asyncio
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from app.engine.errors import NotReady
from app.engine.host import Host
from app.engine.remote import RemoteEngine
from app.main import create_engine
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from benchmarks.serving.peers.front import instant_classifier


def _host(path: str) -> None:
    async def main() -> None:
        settings = Settings()
        classifier = instant_classifier(settings.weights)
        host = Host(create_engine(settings, Telemetry(), {classifier.card.name: lambda: classifier}))
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()
            await host.start(listening)
            await asyncio.Event().wait()

    uvloop.run(main())


def _cpu_seconds(pid: int) -> float:
    """Of all threads of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _connected(path: str, name: str) -> RemoteEngine:
    engine = RemoteEngine(path, [name])
    await engine.start()
    while True:
        try:
            engine.check_ready()
        except NotReady:
            await asyncio.sleep(0.05)
        else:
            return engine


async def _send(engine: RemoteEngine, pixels: NDArray[np.uint8], counted: list[int], ends: float) -> None:
    while time.monotonic() < ends:
        with engine.admit(engine.catalog.names[0], 1) as lease:
            await lease.classify([pixels])
        counted[0] += 1


async def _measure(path: str, pid: int, at_once: Sequence[int], seconds: float) -> None:
    weights = Settings().weights
    card = instant_classifier(weights).card
    engine = await _connected(path, card.name)
    pixels = np.zeros((1, card.input.crop, card.input.crop, 3), np.uint8)
    for count in at_once:
        counted, began = [0], time.monotonic()
        before = _cpu_seconds(pid), time.process_time()
        await asyncio.gather(*(_send(engine, pixels, counted, began + seconds) for _ in range(count)))
        took = _cpu_seconds(pid) - before[0], time.process_time() - before[1]
        process, front = (each / counted[0] * 1e6 for each in took)
        rate = counted[0] / (time.monotonic() - began)
        print(f"{count:4} at once: {rate:6.0f} images/s, {process:4.0f} us engine process, {front:4.0f} us front")
    await engine.stop()


def main() -> None:
    """Measure, and print a line for each number of images at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "engine")
        process = multiprocessing.get_context("spawn").Process(target=_host, args=(path,))
        process.start()
        try:
            assert process.pid  # noqa: S101
            uvloop.run(_measure(path, process.pid, options.at_once, options.seconds))
        finally:
            process.kill()
            process.join()


if __name__ == "__main__":
    main()
