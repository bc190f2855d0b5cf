"""python -m deploy.rehearse: a rolling update of real service processes behind HAProxy, under load."""

import asyncio
import contextlib
import csv
import io
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
import typer
import uvloop

from app.cpus import available_cpus
from benchmarks.soak.clients import ServiceError
from benchmarks.soak.samples import good_samples
from benchmarks.soak.service import ServiceProcess
from benchmarks.soak.tally import percentile
from benchmarks.soak.wire import NoResponse, Pool

CONFIGURATION = Path(__file__).parent / "compose" / "haproxy.cfg"

_READY_TIMEOUT = 180.0
# Longer than any timeout of the proxy and of the service. A request without a response by then is lost.
_RESPONSE_TIMEOUT = 60.0
_HEADER = f"{'':<24}{'requests':>10}{'lost':>6}{'p50':>10}{'p99':>10}"


@dataclass(slots=True)
class Phase:
    """The requests that ended in a phase.

    Attributes:
        latencies: seconds of those with status 200.
        lost: number of the others by reason.
    """

    latencies: list[float] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)

    def row(self, name: str) -> str:
        """A row of the table; latencies in milliseconds."""
        lost = sum(self.lost.values())
        p50, p99 = (percentile(self.latencies, percent) * 1000 for percent in (50, 99))
        return f"{name:<24}{len(self.latencies) + lost:>10}{lost:>6}{p50:>7.0f} ms{p99:>7.0f} ms"


class Proxy:
    """HAProxy with the configuration of docker-compose.yml, on a free port.

    Attributes:
        port: its port.

    Args:
        ports: of the replicas. Those that do not listen are not used.
        retries: how often it tries again to connect.

    Raises:
        ServiceError: HAProxy is not installed or does not start.
    """

    def __init__(self, ports: Sequence[int], *, retries: int) -> None:
        program = shutil.which("haproxy")
        if program is None:
            raise ServiceError("haproxy is not installed: install the package haproxy of Debian")
        self.port, self._statistics = free_ports(2)
        self._folder = tempfile.TemporaryDirectory()
        backend = Path(self._folder.name, "replicas.cfg")
        servers = "".join(f"    server {port} 127.0.0.1:{port}\n" for port in ports)
        backend.write_text(f"backend replicas\n{servers}", encoding="utf-8")
        log = Path(self._folder.name, "log")
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [program, "-db", "-f", str(CONFIGURATION), "-f", str(backend)],
                env={
                    **os.environ,
                    "PROXY_ADDRESS": f"127.0.0.1:{self.port}",
                    "PROXY_STATISTICS": f"127.0.0.1:{self._statistics}",
                    "PROXY_RETRIES": str(retries),
                },
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_listening(log)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def statistics(self) -> dict[str, dict[str, str]]:
        """HAProxy's counters of each replica, by its port."""
        text = httpx.get(f"http://127.0.0.1:{self._statistics}/;csv", timeout=10).text
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        return {row["svname"]: row for row in rows if row["pxname"] == "replicas" and row["svname"] != "BACKEND"}

    def wait_checked(self, up: Sequence[int], down: Sequence[int] = ()) -> None:
        """Wait until it sends requests to the replicas on some ports and to none on others.

        HAProxy takes a server that it has not checked yet for one that works.

        Raises:
            ServiceError: it does not.
        """
        expected = {str(port): state for state, ports in (("UP", up), ("DOWN", down)) for port in ports}
        ends = time.monotonic() + _READY_TIMEOUT
        while True:
            rows = self.statistics()
            if all(rows[port]["status"] == state and rows[port]["check_status"] for port, state in expected.items()):
                return
            if time.monotonic() > ends:
                raise ServiceError(f"the proxy does not use the replicas on the ports {', '.join(map(str, up))} only")
            time.sleep(0.1)

    def retries(self) -> int:
        """How often it tried again to connect to a replica."""
        return sum(int(row["wretr"]) for row in self.statistics().values())

    def _wait_listening(self, log: Path) -> None:
        ends = time.monotonic() + 20
        while self._process.poll() is None and time.monotonic() < ends:
            with contextlib.suppress(httpx.HTTPError):
                self.statistics()
                return
            time.sleep(0.05)
        raise ServiceError(f"haproxy does not start: {log.read_text(encoding='utf-8').strip()}")


class Replicas:
    """Services on fixed ports, one port more than there are replicas.

    Args:
        count: number of replicas.
        weights: folder of the bundle.
        logs: folder for their logs.
        pinned: whether each runs on one CPU, in turn.
        settings: of each service.
    """

    def __init__(self, count: int, weights: Path, logs: Path, *, pinned: bool = False, **settings: float) -> None:
        self.ports = free_ports(count + 1)
        self._weights, self._logs, self._settings = weights, logs, settings
        self._running: dict[int, ServiceProcess] = {}
        self._pinned = pinned
        self._started = 0

    @property
    def services(self) -> list[ServiceProcess]:
        """Those that run."""
        return list(self._running.values())

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Start them, and kill at the end those that still run.

        Raises:
            ServiceError: one does not become ready.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(self._kill)
            for port in self.ports[:-1]:
                self._start(port)
            yield

    def update(self, proxy: Proxy) -> None:
        """Replace each: start a new one on the free port, wait until the proxy uses it, and terminate the old one.

        Raises:
            ServiceError: a new one does not become ready, or the exit code of an old one is not 0.
        """
        free = self.ports[-1]
        for port in self.ports[:-1]:
            self._start(free)
            proxy.wait_checked([free])
            if self._running.pop(port).terminate() != 0:
                raise ServiceError(f"the replica on port {port} does not exit with 0: see its log in {self._logs}")
            free = port
        self.ports = [*self._running, free]

    def _start(self, port: int) -> None:
        log = self._logs / f"replica-{self._started}.log"
        with on_cpu(self._started) if self._pinned else contextlib.nullcontext():
            service = self._running[port] = ServiceProcess([self._weights], log, port=port, **self._settings)
        self._started += 1
        ends = time.monotonic() + _READY_TIMEOUT
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            while client.get("/readyz").status_code != 200:
                if service.ended or time.monotonic() > ends:
                    raise ServiceError(f"a replica does not become ready: see {log}")
                time.sleep(0.05)

    def _kill(self) -> None:
        for service in self.services:
            service.__exit__()


@contextlib.contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """Run this thread, and the processes and threads that it starts, on one of the available CPUs."""
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(available)[number % len(available)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, available)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]


@contextlib.asynccontextmanager
async def load(port: int, connections: int, requests: Sequence[bytes]) -> AsyncIterator[list[Phase]]:
    """Run clients that each send a request as soon as they have the response to the previous one.

    Args:
        port: of the proxy or a service.
        connections: number of clients.
        requests: heads and bodies, sent in random order.

    Yields:
        Phases. A request counts in the one that is last when it ends.
    """
    phases = [Phase()]
    pool = Pool(port, _RESPONSE_TIMEOUT)
    stop = asyncio.Event()

    async def run_client(seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311
        while not stop.is_set():
            started = time.monotonic()
            try:
                response = await pool.send(rng.choice(requests))
            except NoResponse as error:
                phases[-1].lost[str(error)] += 1
                continue
            if response.status == 200:
                phases[-1].latencies.append(time.monotonic() - started)
            else:
                of_service = response.headers.get("content-type") == "application/problem+json"
                reason = json.loads(response.body)["detail"] if of_service else "of the proxy"
                phases[-1].lost[f"status {response.status}, {reason}"] += 1
                await asyncio.sleep(0.1)

    # No TaskGroup, which would wrap an error that is raised at the yield.
    clients = [asyncio.create_task(run_client(seed)) for seed in range(connections)]
    try:
        yield phases
    finally:
        stop.set()
        try:
            await asyncio.gather(*clients)
        finally:
            pool.close()


async def rehearse(replicas: Replicas, proxy: Proxy, *, connections: int, seconds: float) -> tuple[Phase, Phase]:
    """Load the replicas through the proxy, first for some seconds without an update and then during one.

    Returns:
        The requests before and during the update.
    """
    requests = [sample.request for sample in good_samples()]
    async with load(proxy.port, connections, requests) as phases:
        await asyncio.sleep(seconds)
        phases.append(Phase())
        await asyncio.to_thread(replicas.update, proxy)
    before, during = phases
    return before, during


def main(
    weights: Annotated[Path, typer.Option(help="Folder of the bundle.")] = Path("weights/resnet18-cifar10"),
    replicas: Annotated[int, typer.Option(min=1, help="Number of replicas.")] = 2,
    connections: Annotated[int, typer.Option(min=1, help="Connections of the load.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds of load before the update.")] = 8.0,
    drain_delay: Annotated[float, typer.Option(min=0, help="TENFOLD_DRAIN_DELAY of the replicas.")] = 5.0,
    retries: Annotated[
        list[int] | None, typer.Option(min=0, help="How often the proxy tries again to connect; 0 and 3 by default.")
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder for the logs of the services.")] = Path("runs/rehearse"),
) -> None:
    """Replace the replicas one by one under load. Print a table; exit with 1 if a request was lost."""
    threads = max(1, available_cpus() // replicas)
    lost = Counter[str]()
    typer.echo(_HEADER)
    try:
        for attempts in retries or [0, 3]:
            group = Replicas(replicas, weights, logs, drain_delay=drain_delay, threads=threads)
            with group.started(), Proxy(group.ports, retries=attempts) as proxy:
                proxy.wait_checked(group.ports[:-1], group.ports[-1:])
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    before, during = runner.run(rehearse(group, proxy, connections=connections, seconds=seconds))
                retried = proxy.retries()
            typer.echo(before.row(f"{attempts} retries, before"))
            typer.echo(f"{during.row(f'{attempts} retries, update')}   connections tried again: {retried}")
            lost += before.lost + during.lost
    except ServiceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    for reason, count in lost.most_common():
        typer.echo(f"lost: {count} with {reason}", err=True)
    raise typer.Exit(1 if lost else 0)


command = typer.Typer(add_completion=False)
command.command()(main)

if __name__ == "__main__":
    command()
