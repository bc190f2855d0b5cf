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
from app.settings import Settings
from benchmarks.scale.simulation import Cost, Outcome
from benchmarks.serving.payloads import Payload, body_of, large_jpeg, small_pngs
from benchmarks.soak.phases import Phase, load
from benchmarks.soak.proxy import Proxy
from benchmarks.soak.replicas import Replicas, on_cpu
from benchmarks.soak.samples import get
from benchmarks.soak.service import ServiceProcess
from benchmarks.soak.wire import NoResponse, Pool

CONNECTIONS = 32
_CONNECTIONS_WITH_LARGE = 8
_BATCH = 32
_VIEWS: int = Settings.model_fields["views"].default
# Added to the deadline. A request without a response by then is late.
_EXTRA_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Core:
    """Speed of one core for a kind of file, in images per second of CPU time.

    Wall time would include the time for which other programs use the core.

    Attributes:
        size: mean bytes of a file.
        service: of the service, each image in a request of its own.
        decode: that are only decoded and preprocessed.
        engine: of the engine alone, in batches.
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
        with on_cpu(0):
            decode = _calls_per_second(
                partial(model.preprocess, payload.files[0], spec, max_pixels=10**8, views=_VIEWS), seconds
            )
        replicas = Replicas(1, weights, logs, pinned=True)
        with replicas.started():
            (service,) = replicas.services
            rate = asyncio.run(_images_per_cpu_second(service, connections, requests_of(payload), seconds))
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
        proxy.wait_checked(replicas.ports[:-1], replicas.ports[-1:])
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            requests = requests_of(small_pngs())
            runner.run(_closed_loop(proxy.port, CONNECTIONS, requests, 1.0))
            latency, _ = runner.run(_closed_loop(proxy.port, 1, requests, seconds))
            _, rate = runner.run(_closed_loop(proxy.port, CONNECTIONS * count, requests, seconds))
            # A request that takes no image costs about as much as one that is refused.
            _, probes = runner.run(_closed_loop(proxy.port, CONNECTIONS * count, [get("/livez")], seconds))
            cost = Cost.of(latency=latency, rate=rate / count, images=CONNECTIONS, refusal=count / probes)
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


async def _images_per_cpu_second(
    service: ServiceProcess, connections: int, requests: Sequence[bytes], seconds: float
) -> float:
    """Responses with status 200 for each second of CPU time of the service, after a short warm-up."""
    async with load(service.port, connections, requests) as phases:
        await asyncio.sleep(seconds / 4)
        phases.append(Phase())
        began = service.cpu_seconds()
        await asyncio.sleep(seconds)
        return len(phases[-1].latencies) / (service.cpu_seconds() - began)


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
    """Calls of a function for each second of CPU time, after one that does not count."""
    function()
    calls = 0
    began = time.process_time()
    while calls < 3 or time.process_time() < began + seconds:
        function()
        calls += 1
    return calls / (time.process_time() - began)
