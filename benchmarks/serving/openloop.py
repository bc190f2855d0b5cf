"""Open loop: requests arrive at a rate that does not depend on the responses."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.serving.payloads import Body
from benchmarks.serving.servers import RunningServer
from benchmarks.soak.tally import percentile
from benchmarks.soak.wire import NoResponse, Pool

FACTORS = (0.5, 1.0, 1.5, 2.0, 3.0)
# Added to the deadline. A request without a response by then is lost.
_EXTRA_TIMEOUT = 10.0


@dataclass(slots=True)
class OpenLoop:
    """Outcomes of the requests at one rate.

    Attributes:
        offered: planned requests per second.
        seconds: duration.
        deadline: seconds within which a response counts.
        statuses: number of responses by status.
        lost: requests without a response.
        latencies: seconds of the responses with status 200.
        lags: seconds between the planned and the actual time of sending, because the client was too slow.
    """

    offered: float
    seconds: float
    deadline: float
    statuses: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Responses with status 200 within the deadline, per second."""
        return sum(latency <= self.deadline for latency in self.latencies) / self.seconds

    @property
    def p50(self) -> float | None:
        """Median latency in milliseconds of the responses with status 200; None without any."""
        return percentile(self.latencies, 50) * 1000 if self.latencies else None

    @property
    def p99(self) -> float | None:
        """99th percentile of the same."""
        return percentile(self.latencies, 99) * 1000 if self.latencies else None

    def summary(self) -> dict[str, Any]:
        """All values for JSON; latencies in milliseconds."""
        return {
            "offered": self.offered,
            "seconds": self.seconds,
            "deadline": self.deadline,
            "goodput": self.goodput,
            "p50": self.p50,
            "p99": self.p99,
            "statuses": {str(status): count for status, count in sorted(self.statuses.items())},
            "lost": self.lost,
            "client_lag_p99": percentile(self.lags, 99) * 1000 if self.lags else None,
        }


def open_loop(
    running: RunningServer, bodies: Sequence[Body], *, capacity: float, seconds: float, deadline: float
) -> list[OpenLoop]:
    """Send requests with Poisson arrivals at each of `FACTORS` times the capacity.

    Args:
        running: the service.
        bodies: sent in random order.
        capacity: requests per second.
        seconds: duration at each rate.
        deadline: in seconds. It is sent as X-Request-Timeout, so that the service drops requests that are too late.
    """
    requests = [_request(running.server.target, body, deadline) for body in bodies]
    outcomes = []
    for factor in FACTORS:
        running.wait_idle(bodies[0])
        outcome = OpenLoop(factor * capacity, seconds, deadline)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_arrivals(running.port, requests, outcome))
        outcomes.append(outcome)
    return outcomes


async def _arrivals(port: int, requests: Sequence[bytes], outcome: OpenLoop) -> None:
    loop = asyncio.get_running_loop()
    rng = random.Random(0)  # noqa: S311
    pool = Pool(port, outcome.deadline + _EXTRA_TIMEOUT)

    async def send(request: bytes) -> None:
        started = loop.time()
        try:
            status = (await pool.send(request)).status
        except NoResponse:
            outcome.lost += 1
            return
        outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
        if status == 200:
            outcome.latencies.append(loop.time() - started)

    due = loop.time()
    ends = due + outcome.seconds
    async with asyncio.TaskGroup() as group:
        while (due := due + rng.expovariate(outcome.offered)) < ends:
            await asyncio.sleep(max(0.0, due - loop.time()))
            outcome.lags.append(loop.time() - due)
            group.create_task(send(rng.choice(requests)))
    pool.close()


def _request(target: str, body: Body, deadline: float) -> bytes:
    head = (
        f"POST {target} HTTP/1.1\r\nHost: bench\r\nContent-Type: {body.content_type}\r\n"
        f"Content-Length: {len(body.data)}\r\nX-Request-Timeout: {deadline:g}\r\n\r\n"
    )
    return head.encode() + body.data
