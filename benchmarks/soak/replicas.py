"""Several services on this machine, and a rolling update of them behind a proxy."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from benchmarks.soak.clients import ServiceError
from benchmarks.soak.proxy import READY_TIMEOUT, Proxy, free_ports
from benchmarks.soak.service import ServiceProcess


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
        ends = time.monotonic() + READY_TIMEOUT
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
