"""python -m benchmarks.models weights/A weights/B: the latency of one model while another is flooded with requests."""

import json
import tempfile
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import httpx
import typer

from benchmarks.serving.payloads import small_pngs
from benchmarks.serving.servers import ServerError
from benchmarks.serving.wrk import Load, drive
from benchmarks.soak.clients import ServiceError
from benchmarks.soak.service import ServiceProcess
from model import CARD_FILE, ModelError, read_card

_READY_TIMEOUT = 180.0
# Seconds of the flood before and after the measurement.
_MARGIN = 1


def main(
    flooded: Annotated[Path, typer.Argument(help="Bundle of the model that gets a flood of requests.")],
    measured: Annotated[Path, typer.Argument(help="Bundle of the model whose latency is measured.")],
    connections: Annotated[int, typer.Option(min=1, help="Connections of the flood.")] = 16,
    seconds: Annotated[int, typer.Option(min=1, help="Duration of each measurement.")] = 10,
    log: Annotated[Path, typer.Option(help="Log of the service.")] = Path("runs/models/service.log"),
) -> None:
    """Measure one model alone and during the flood, with one connection. Print a table and a line of JSON."""
    try:
        names = [read_card(folder / CARD_FILE).name for folder in (flooded, measured)]
        with ServiceProcess([flooded, measured], log) as service:
            alone, during, flood = measure(service, *names, connections=connections, seconds=seconds)
    except (ModelError, ServerError, ServiceError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(table(alone, during, flood))
    loads = {"alone": alone, "during": during, "flood": flood}
    typer.echo(json.dumps({"connections": connections, **{name: asdict(load) for name, load in loads.items()}}))


def measure(
    service: ServiceProcess, flooded: str, measured: str, *, connections: int, seconds: int
) -> tuple[Load, Load, Load]:
    """Send requests for one model alone, and then during a flood for the other.

    Returns:
        The load of the measured model alone, that during the flood, and the flood.

    Raises:
        ServiceError: the service does not become ready.
        ServerError: wrk is not installed, or fails.
    """
    root = f"http://127.0.0.1:{service.port}"
    _wait_ready(service, root)
    with tempfile.TemporaryDirectory() as folder:
        bodies = []
        for number, data in enumerate(small_pngs().files):
            bodies.append(Path(folder, f"{number}.png"))
            bodies[-1].write_bytes(data)

        def send(model: str, *, connections: int, seconds: int) -> Load:
            return drive(f"{root}/predict?model={model}", "image/png", bodies, connections=connections, seconds=seconds)

        send(measured, connections=1, seconds=1)
        alone = send(measured, connections=1, seconds=seconds)
        floods: list[Load] = []
        thread = threading.Thread(
            target=lambda: floods.append(send(flooded, connections=connections, seconds=seconds + 2 * _MARGIN))
        )
        thread.start()
        time.sleep(_MARGIN)
        during = send(measured, connections=1, seconds=seconds)
        thread.join()
    if not floods:
        raise ServerError("the flood failed: see the messages above")
    return alone, during, floods[0]


def table(alone: Load, during: Load, flood: Load) -> str:
    """The measurements as text."""
    lines = [f"{'':<16}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'errors':>8}"]
    for name, load in (("alone", alone), ("during a flood", during), ("the flood", flood)):
        lines.append(f"{name:<16}{load.rate:>12.0f}{load.p50 or 0:>10.1f}{load.p99 or 0:>10.1f}{load.errors:>8}")
    if alone.p99 and during.p99:
        lines.append(f"p99 during the flood is {during.p99 / alone.p99:.1f} times that alone")
    return "\n".join(lines)


def _wait_ready(service: ServiceProcess, root: str) -> None:
    ends = time.monotonic() + _READY_TIMEOUT
    while time.monotonic() < ends and not service.ended:
        if httpx.get(f"{root}/readyz").status_code == 200:
            return
        time.sleep(0.1)
    raise ServiceError(f"the service does not become ready: see {service.log}")


if __name__ == "__main__":
    typer.run(main)
