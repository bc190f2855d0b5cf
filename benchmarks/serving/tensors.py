"""Tenfold by the Open Inference Protocol: pixels as binary tensors, compared with PNGs and with the engine alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.serving.ceiling import BATCH, Ceiling, measure_in_subprocess
from benchmarks.serving.payloads import Payload
from benchmarks.serving.servers import RunningServer
from benchmarks.serving.wrk import Load, drive
from model import ModelCard

_BODIES = 16


class TensorCase(NamedTuple):
    """A load.

    Attributes:
        name: in the table.
        images: in each request.
        connections: number of connections.
    """

    name: str
    images: int
    connections: int


PNG = TensorCase("PNG, raw", 1, 32)
"""What single tensors are compared with: requests to /predict."""

CASES = (TensorCase("1 tensor", 1, 32), TensorCase(f"{BATCH} tensors", BATCH, 4))


@dataclass(slots=True)
class TensorResults:
    """The measurements, one per round.

    Attributes:
        loads: by case, `PNG` included.
        ceilings: the engine alone.
    """

    loads: dict[TensorCase, list[Load]] = field(default_factory=dict)
    ceilings: list[Ceiling] = field(default_factory=list)


def measure_tensors(
    running: RunningServer, weights: Path, card: ModelCard, payload: Payload, folder: Path, *, rounds: int, seconds: int
) -> TensorResults:
    """Measure all cases directly after each other, `rounds` times.

    Args:
        running: Tenfold, resumed.
        weights: folder of its bundle.
        card: of the bundle.
        payload: PNGs.
        folder: for the bodies.
        rounds: number of rounds.
        seconds: duration of each measurement.

    Raises:
        ServerError: a measurement fails.
    """
    results = TensorResults()
    raw = payload.bodies("raw")
    files = [folder / f"tensors-png-{number}" for number in range(len(raw))]
    for path, body in zip(files, raw, strict=True):
        path.write_bytes(body.data)
    target = f"http://127.0.0.1:{running.port}/v2/models/{card.name}/infer"
    requests = {case: _write(case, card.input.crop, folder) for case in CASES}
    for _ in range(rounds):
        results.ceilings.append(measure_in_subprocess(weights, seconds))
        load = drive(running.url, raw[0].content_type, files, connections=PNG.connections, seconds=seconds)
        results.loads.setdefault(PNG, []).append(load)
        for case, (length, paths) in requests.items():
            running.wait_idle(raw[0])
            load = drive(
                target,
                "application/octet-stream",
                paths,
                connections=case.connections,
                seconds=seconds,
                headers={"Inference-Header-Content-Length": str(length)},
            )
            results.loads.setdefault(case, []).append(load)
        running.wait_idle(raw[0])
    return results


def body_of_tensors(pixels: np.ndarray) -> tuple[int, bytes]:
    """The length of the JSON and the body of a request with pixels, uint8[N, S, S, 3]."""
    data = pixels.tobytes()
    tensor = {
        "name": "pixels",
        "datatype": "UINT8",
        "shape": pixels.shape,
        "parameters": {"binary_data_size": len(data)},
    }
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return len(text), text + data


def _write(case: TensorCase, side: int, folder: Path) -> tuple[int, list[Path]]:
    """Write the bodies for wrk. Returns the length of their JSON and the files."""
    rng = np.random.default_rng(0)
    paths, length = [], 0
    for number in range(_BODIES):
        pixels = rng.integers(0, 256, (case.images, side, side, 3), np.uint8)
        length, body = body_of_tensors(pixels)
        path = folder / f"tensors-{case.images}-{number}"
        path.write_bytes(body)
        paths.append(path)
    return length, paths
