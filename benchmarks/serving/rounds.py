"""The rounds: one server after the other under every load, several times."""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from benchmarks.serving.agreement import Reference, compare
from benchmarks.serving.ceiling import Ceiling, measure_in_subprocess
from benchmarks.serving.mixed import MixedResults, measure_mixed
from benchmarks.serving.openloop import OpenLoop, open_loop
from benchmarks.serving.payloads import Body, Encoding, Payload
from benchmarks.serving.servers import RunningServer, Server, ServerError
from benchmarks.serving.tensors import TensorResults, measure_tensors
from benchmarks.serving.wrk import Load, drive
from model import CARD_FILE, read_card

MAX_CONNECTIONS_WITH_LARGE = 32
"""Most connections with the large image. With more, the queueing time exceeds the duration of a measurement."""

_WARM_UP = 1
_WARM_UP_CONNECTIONS = 32
_ENCODINGS: tuple[Encoding, ...] = ("multipart", "raw")


@dataclass(frozen=True, slots=True)
class Case:
    """A load: the kind of file, the encoding of the body, and the number of connections."""

    payload: str
    encoding: Encoding
    connections: int


@dataclass(slots=True)
class Results:
    """All measurements.

    Attributes:
        loads: by case and server name, one per round.
        ceilings: the engine alone, one per round.
        open_loop: Tenfold at several rates.
        tensors: Tenfold by the Open Inference Protocol; None if not measured.
        mixed: by server name, small and large images at the same time.
        missing: by server name, the reason why it has no or not all measurements.
    """

    loads: dict[Case, dict[str, list[Load]]] = field(default_factory=dict)
    ceilings: list[Ceiling] = field(default_factory=list)
    open_loop: list[OpenLoop] = field(default_factory=list)
    tensors: TensorResults | None = None
    mixed: dict[str, MixedResults] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def rate(self, case: Case, name: str) -> float | None:
        """Median over the rounds of the successful requests per second; None without measurements."""
        loads = self.loads.get(case, {}).get(name)
        return statistics.median(load.rate for load in loads) if loads else None


def cases_of(payloads: Sequence[Payload], connections: Sequence[int]) -> list[Case]:
    """All loads in the order of the table."""
    return [
        Case(payload.name, encoding, count)
        for payload in payloads
        for encoding in _ENCODINGS
        for count in connections
        if payload.name != "jpeg" or count <= MAX_CONNECTIONS_WITH_LARGE
    ]


class Comparison:
    """The servers and their measurements. A server that fails is excluded from then on.

    Attributes:
        results: measurements so far.
        failures: error messages.

    Args:
        weights: folder of the bundle.
        reference: predictions that the servers must agree with.
        payloads: files to send. The first is used for the warm-up.
        bodies: folder for the prepared bodies.
        logs: folder for the output of the servers.
        notify: called with progress messages.
    """

    def __init__(
        self,
        weights: Path,
        reference: Reference,
        payloads: Sequence[Payload],
        *,
        bodies: Path,
        logs: Path,
        notify: Callable[[str], None],
    ) -> None:
        self.results = Results()
        self.failures: list[str] = []
        self._running: list[RunningServer] = []
        self._weights = weights
        self._reference = reference
        self._payloads = payloads
        self._logs = logs
        self._bodies = bodies
        self._notify = notify
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

    def add(self, server: Server) -> None:
        """Start a server, check its predictions, warm it up and pause it."""
        if not server.installed:
            self.results.missing[server.name] = "not installed"
            self._notify(f"{server.package} is not installed: run make bench")
            return
        self._notify(f"starting {server.name}")
        running = RunningServer(server, self._weights, self._logs / f"{server.name}.log")
        self._running.append(running)
        with self._excluding_on_error(running):
            running.wait_ready(self._probe(server))
            if server.classifies:
                agreement = compare(running, self._reference)
                if not agreement.holds:
                    raise ServerError(agreement.message(server.name))
            warm_up = Case(self._payloads[0].name, server.encodings[0], _WARM_UP_CONNECTIONS)
            self._drive(running, warm_up, _WARM_UP)

    def run(self, cases: Sequence[Case], *, rounds: int, seconds: int, ceiling: bool) -> None:
        """Measure everything `rounds` times. For each load the servers are measured directly after each other."""
        for number in range(1, rounds + 1):
            self._notify(f"round {number} of {rounds}")
            if ceiling:
                self._measure_ceiling(seconds)
            for case in cases:
                for running in [each for each in self._running if case.encoding in each.server.encodings]:
                    with self._excluding_on_error(running):
                        load = self._drive(running, case, seconds)
                        self.results.loads.setdefault(case, {}).setdefault(running.server.name, []).append(load)

    def run_open_loop(self, server: Server, payload: Payload, *, seconds: float, deadline: float) -> None:
        """Send multiples of the highest rate that it reached with this payload in multipart bodies."""
        rates = [
            self.results.rate(case, server.name) or 0.0
            for case in self.results.loads
            if (case.payload, case.encoding) == (payload.name, "multipart")
        ]
        capacity = max(rates, default=0.0)
        for running in [each for each in self._running if each.server is server]:
            if not capacity:
                self.failures.append(f"{server.name} has no measured capacity, so there is no open loop")
                return
            self._notify(f"open loop: multiples of {capacity:.0f} requests/s")
            with self._excluding_on_error(running):
                running.resume()
                self.results.open_loop = open_loop(
                    running, payload.bodies("multipart"), capacity=capacity, seconds=seconds, deadline=deadline
                )

    def run_tensors(self, server: Server, payload: Payload, *, rounds: int, seconds: int) -> None:
        """Measure binary tensors by the Open Inference Protocol, and this payload in raw bodies."""
        for running in [each for each in self._running if each.server is server]:
            self._notify("tensors by the Open Inference Protocol")
            with self._excluding_on_error(running):
                running.resume()
                card = read_card(self._weights / CARD_FILE)
                self.results.tensors = measure_tensors(
                    running, self._weights, card, payload, self._bodies, rounds=rounds, seconds=seconds
                )
                running.pause()

    def run_mixed(self, small: Payload, large: Sequence[Payload], *, rounds: int, seconds: int) -> None:
        """Send small and large images at the same time to each server."""
        for running in [each for each in self._running if each.server.classifies]:
            self._notify(f"small and large images at the same time: {running.server.name}")
            with self._excluding_on_error(running):
                running.resume()
                self.results.mixed[running.server.name] = measure_mixed(
                    running, small, large, self._bodies, rounds=rounds, seconds=seconds
                )
                running.pause()

    def _measure_ceiling(self, seconds: int) -> None:
        try:
            self.results.ceilings.append(measure_in_subprocess(self._weights, seconds))
        except ServerError as error:
            self.failures.append(str(error))

    def _drive(self, running: RunningServer, case: Case, seconds: int) -> Load:
        content_type, files = self._files[case.payload, case.encoding]
        running.resume()
        load = drive(running.url, content_type, files, connections=case.connections, seconds=seconds)
        # Pause it only when it is idle: a service that is stopped in a forward pass would report a stalled engine.
        running.wait_idle(self._probe(running.server))
        running.pause()
        return load

    def _probe(self, server: Server) -> Body:
        return self._payloads[0].bodies(server.encodings[0])[0]

    @contextlib.contextmanager
    def _excluding_on_error(self, running: RunningServer) -> Iterator[None]:
        try:
            yield
        except ServerError as error:
            self.results.missing[running.server.name] = "failed"
            self.failures.append(str(error))
            self._notify(str(error).splitlines()[0])
            self._running.remove(running)
            running.stop()


def _write(payload: Payload, encoding: Encoding, folder: Path) -> tuple[str, list[Path]]:
    """Write the bodies for wrk. Returns the content type and the files."""
    paths = []
    bodies = payload.bodies(encoding)
    for number, body in enumerate(bodies):
        path = folder / f"{payload.name}-{encoding}-{number}"
        path.write_bytes(body.data)
        paths.append(path)
    return bodies[0].content_type, paths
