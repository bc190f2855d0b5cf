"""The rounds: every server under every load, again and again, one at a time."""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.serving.agreement import Expected, compare
from benchmarks.serving.ceiling import Ceiling, measure_apart
from benchmarks.serving.openloop import OpenLoop, open_loop
from benchmarks.serving.payloads import Body, Encoding, Payload
from benchmarks.serving.servers import Running, Server, ServerError
from benchmarks.serving.wrk import Load, drive

MOST_WITH_LARGE = 32
"""Connections at most with large pictures: with more, the queue alone outlasts a measurement."""

_WARM_UP = 1
_WARM_UP_CONNECTIONS = 32
_ENCODINGS: tuple[Encoding, ...] = ("multipart", "raw")


@dataclass(frozen=True, slots=True)
class Case:
    """One load: what is posted, how, and by how many at a time."""

    payload: str
    encoding: Encoding
    connections: int


@dataclass(slots=True)
class Results:
    """All that was measured.

    Attributes:
        loads: by case, and then by the server's name, one a round.
        ceilings: the network alone, one a round.
        open_loop: Tenfold at several rates.
        missing: why a server has no figures, or not all, by its name.
    """

    loads: dict[Case, dict[str, list[Load]]] = field(default_factory=dict)
    ceilings: list[Ceiling] = field(default_factory=list)
    open_loop: list[OpenLoop] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def rate(self, case: Case, name: str) -> float | None:
        """Median over the rounds of the good answers a second; None if that was not measured."""
        loads = self.loads.get(case, {}).get(name)
        return statistics.median(load.rate for load in loads) if loads else None


def cases_of(payloads: Sequence[Payload], connections: Sequence[int]) -> list[Case]:
    """All loads, in the order of the table."""
    return [
        Case(payload.name, encoding, count)
        for payload in payloads
        for encoding in _ENCODINGS
        for count in connections
        if payload.name != "jpeg" or count <= MOST_WITH_LARGE
    ]


class Contest:
    """The servers that take part. One that fails drops out, and the others go on.

    Attributes:
        results: so far.
        failures: what went wrong, for people.

    Args:
        weights: folder of the bundle.
        right: what the servers must answer.
        payloads: what is posted; the first one to warm up.
        bodies: folder for the prepared bodies.
        logs: folder for what the servers write.
        say: is told what goes on.
    """

    def __init__(
        self,
        weights: Path,
        right: Expected,
        payloads: Sequence[Payload],
        *,
        bodies: Path,
        logs: Path,
        say: Callable[[str], None],
    ) -> None:
        self.results = Results()
        self.failures: list[str] = []
        self._running: list[Running] = []
        self._weights = weights
        self._right = right
        self._payloads = payloads
        self._logs = logs
        self._say = say
        self._files = {
            (payload.name, encoding): _write(payload, encoding, bodies)
            for payload in payloads
            for encoding in _ENCODINGS
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._running:
            running.stop()

    def enter(self, server: Server) -> None:
        """Start a server, compare its answers, warm it up and pause it."""
        if not server.installed:
            self.results.missing[server.name] = "not installed"
            self._say(f"{server.package} is not installed: run make bench")
            return
        self._say(f"starting {server.name}")
        running = Running(server, self._weights, self._logs / f"{server.name}.log")
        self._running.append(running)
        with self._dropping_out(running):
            running.wait_ready(self._probe(server))
            if server.classifies:
                agreement = compare(running, self._right)
                if not agreement.holds:
                    raise ServerError(agreement.complaint(server.name))
            warm_up = Case(self._payloads[0].name, server.encodings[0], _WARM_UP_CONNECTIONS)
            self._drive(running, warm_up, _WARM_UP)

    def run(self, cases: Sequence[Case], *, rounds: int, seconds: int, ceiling: bool) -> None:
        """Measure everything `rounds` times; in each case the servers come right after each other."""
        for number in range(1, rounds + 1):
            self._say(f"round {number} of {rounds}")
            if ceiling:
                self._measure_ceiling(seconds)
            for case in cases:
                for running in [each for each in self._running if case.encoding in each.server.encodings]:
                    with self._dropping_out(running):
                        load = self._drive(running, case, seconds)
                        self.results.loads.setdefault(case, {}).setdefault(running.server.name, []).append(load)

    def run_open_loop(self, server: Server, payload: Payload, *, seconds: float, deadline: float) -> None:
        """Send it multiples of the most that it answered of that payload, in multipart bodies."""
        rates = [
            self.results.rate(case, server.name) or 0.0
            for case in self.results.loads
            if (case.payload, case.encoding) == (payload.name, "multipart")
        ]
        capacity = max(rates, default=0.0)
        for running in [each for each in self._running if each.server is server]:
            if not capacity:
                self.failures.append(f"{server.name} has no capacity to take multiples of: no open loop")
                return
            self._say(f"open loop: multiples of {capacity:.0f} requests/s")
            with self._dropping_out(running):
                running.resume()
                self.results.open_loop = open_loop(
                    running, payload.bodies("multipart"), capacity=capacity, seconds=seconds, deadline=deadline
                )

    def _measure_ceiling(self, seconds: int) -> None:
        try:
            self.results.ceilings.append(measure_apart(self._weights, seconds))
        except ServerError as error:
            self.failures.append(str(error))

    def _drive(self, running: Running, case: Case, seconds: int) -> Load:
        content_type, files = self._files[case.payload, case.encoding]
        running.resume()
        load = drive(running.url, content_type, files, connections=case.connections, seconds=seconds)
        # Not before: to a service that is stopped in a forward pass it seems, later, to have hung.
        running.settle(self._probe(running.server))
        running.pause()
        return load

    def _probe(self, server: Server) -> Body:
        return self._payloads[0].bodies(server.encodings[0])[0]

    @contextlib.contextmanager
    def _dropping_out(self, running: Running) -> Iterator[None]:
        try:
            yield
        except ServerError as error:
            self.results.missing[running.server.name] = "failed"
            self.failures.append(str(error))
            self._say(str(error).splitlines()[0])
            self._running.remove(running)
            running.stop()


def _write(payload: Payload, encoding: Encoding, folder: Path) -> tuple[str, list[Path]]:
    """The content type, and the files of the bodies, which wrk reads."""
    paths = []
    bodies = payload.bodies(encoding)
    for number, body in enumerate(bodies):
        path = folder / f"{payload.name}-{encoding}-{number}"
        path.write_bytes(body.data)
        paths.append(path)
    return bodies[0].content_type, paths
