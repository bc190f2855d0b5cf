"""Real measurements: the speed of one core, and replicas behind the proxy under the arrivals of the simulation."""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

import model
from benchmarks.scale.simulation import Cost, Outcome
from benchmarks.serving.payloads import Payload, body_of, large_jpeg, small_pngs
from benchmarks.soak.wire import NoResponse, Pool
from deploy.rehearse import Phase, Proxy, Replicas, load, on_cpu

CONNECTIONS = 32
_CONNECTIONS_WITH_LARGE = 8
_BATCH = 32
# Added to the deadline. A request without a response by then is late.
_EXTRA_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Core:
    """Speed of one core, by the kind of file.

    Attributes:
        size: mean bytes of a file.
        service: images per second of the service, each in a request of its own.
        decode: images per second that are only decoded and preprocessed.
        engine: images per second of the engine alone, in batches.
    """

    size: float
    service: float
    decode: float
    engine: float


def requests_of(payload: Payload, timeout: float | None = None) -> list[bytes]:
    """An upload as multipart/form-data for each file, with the service's default parameters.

    Args:
        payload: the files.
        timeout: the client's own deadline in seconds.
    """
    requests = []
    for file in payload.files:
        body = body_of(file, payload.mime, "multipart")
        head = f"POST /predict HTTP/1.1\r\nHost: scale\r\nContent-Type: {body.content_type}\r\n"
        if timeout is not None:
            head += f"X-Request-Timeout: {timeout:g}\r\n"
        requests.append(f"{head}Content-Length: {len(body.data)}\r\n\r\n".encode() + body.data)
    return requests


def measure_core(weights: Path, logs: Path, seconds: float) -> dict[str, Core]:
    """The speed of one core for small PNGs and for JPEGs of 12 megapixels. The client runs on the other cores.

    Raises:
        ServiceError: the service does not become ready.
    """
    with on_cpu(0):
        classifier = model.load(weights, device="cpu", threads=1)
        spec = classifier.card.input
        pixels = np.zeros((1, spec.crop, spec.crop, 3), np.uint8)
        engine = _BATCH * _calls_per_second(lambda: classifier.classify([pixels] * _BATCH), seconds)
    found = {}
    for payload, connections in ((small_pngs(), CONNECTIONS), (large_jpeg(), _CONNECTIONS_WITH_LARGE)):
        file = payload.files[0]
        with on_cpu(0):
            decode = _calls_per_second(partial(model.preprocess, file, spec, max_pixels=10**8), seconds)
        replicas = Replicas(1, weights, logs, pinned=True)
        with replicas.started():
            _, rate = asyncio.run(_closed_loop(replicas.ports[0], connections, requests_of(payload), seconds))
        found[payload.name] = Core(statistics.mean(map(len, payload.files)), rate, decode, engine)
    return found


def measure_replicas(
    count: int,
    weights: Path,
    logs: Path,
    *,
    arrivals_of: Callable[[float], Sequence[float]],
    limit: float,
    seconds: float,
) -> tuple[Cost, Sequence[float], Outcome]:
    """Calibrate the cost of a batch in a closed loop, then send requests at the times of an open loop.

    Args:
        count: number of replicas, each on one CPU in turn.
        weights: folder of the bundle.
        logs: folder for the logs of the services.
        arrivals_of: the times of the requests for a capacity in images per second.
        limit: seconds from the arrival of a request to its deadline.
        seconds: duration of each measurement of the closed loop.

    Returns:
        The cost of a batch, the times of the requests, and their outcome.

    Raises:
        ServiceError: a service does not become ready, or the proxy does not start.
    """
    replicas = Replicas(count, weights, logs, pinned=True)
    with replicas.started(), Proxy(replicas.ports, retries=0) as proxy:
        for port in replicas.ports[:-1]:
            proxy.wait_up(port)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            requests = requests_of(small_pngs())
            runner.run(_closed_loop(proxy.port, CONNECTIONS, requests, 1.0))
            latency, _ = runner.run(_closed_loop(proxy.port, 1, requests, seconds))
            _, rate = runner.run(_closed_loop(proxy.port, CONNECTIONS * count, requests, seconds))
            cost = Cost.of(latency=latency, rate=rate / count, images=CONNECTIONS)
            arrivals = arrivals_of(rate)
            outcome = runner.run(_open_loop(proxy.port, arrivals, requests_of(small_pngs(), limit), limit))
    return cost, arrivals, outcome


async def _closed_loop(port: int, connections: int, requests: Sequence[bytes], seconds: float) -> tuple[float, float]:
    """Median seconds of a request, and requests per second with status 200, after a short warm-up."""
    async with load(port, connections, requests) as phases:
        await asyncio.sleep(seconds / 4)
        phases.append(Phase())
        began = time.monotonic()
        await asyncio.sleep(seconds)
        latencies = list(phases[-1].latencies)
        elapsed = time.monotonic() - began
    return statistics.median(latencies), len(latencies) / elapsed


async def _open_loop(port: int, arrivals: Sequence[float], requests: Sequence[bytes], limit: float) -> Outcome:
    """Send the requests at their times. Latencies count from these times."""
    loop = asyncio.get_running_loop()
    pool = Pool(port, limit + _EXTRA_TIMEOUT)
    outcome = Outcome()

    async def send(number: int, due: float) -> None:
        try:
            response = await pool.send(requests[number % len(requests)])
        except NoResponse:
            outcome.late += 1
            return
        if response.status == 200:
            outcome.latencies.append(loop.time() - due)
        elif response.status == 503:
            outcome.refused += 1
        else:
            outcome.late += 1

    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number, at in enumerate(arrivals):
            await asyncio.sleep(max(0.0, began + at - loop.time()))
            group.create_task(send(number, began + at))
    pool.close()
    return outcome


def _calls_per_second(function: Callable[[], object], seconds: float) -> float:
    """Calls of a function per second, after one that does not count."""
    function()
    times: list[float] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends or len(times) < 3:
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return 1 / statistics.median(times)
