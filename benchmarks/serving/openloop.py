"""Open loop: requests come when they come, as strangers' do, whether or not those before have been answered."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.serving.payloads import Body
from benchmarks.serving.servers import Running
from benchmarks.soak.tally import percentile
from benchmarks.soak.wire import Lost, Pool

FACTORS = (0.5, 1.0, 1.5, 2.0)
# Beyond the deadline that the service is told: what takes longer is lost.
_PATIENCE = 10.0


@dataclass(slots=True)
class OpenLoop:
    """What became of requests at one rate.

    Attributes:
        offered: requests a second, planned.
        seconds: that they were sent for.
        deadline: seconds that an answer is worth something for.
        statuses: of the answers.
        lost: requests without an answer.
        latencies: seconds, of the answers with 200.
        lags: seconds that a request was sent later than planned, because the client could not keep up.
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
        """Answers with 200 within the deadline, a second."""
        return sum(latency <= self.deadline for latency in self.latencies) / self.seconds

    @property
    def p50(self) -> float | None:
        """Milliseconds, of the answers with 200; None if there are none."""
        return percentile(self.latencies, 50) * 1000 if self.latencies else None

    @property
    def p99(self) -> float | None:
        """Likewise."""
        return percentile(self.latencies, 99) * 1000 if self.latencies else None

    def summary(self) -> dict[str, Any]:
        """As JSON has it; latencies in milliseconds."""
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
    running: Running, bodies: Sequence[Body], *, capacity: float, seconds: float, deadline: float
) -> list[OpenLoop]:
    """Poisson arrivals at each of `FACTORS` times the capacity, one after the other.

    Args:
        running: the service.
        bodies: posted in random order.
        capacity: requests a second.
        seconds: of each.
        deadline: the service is told of it (X-Request-Timeout), so that it need not work for nobody.
    """
    requests = [_request(running.server.target, body, deadline) for body in bodies]
    outcomes = []
    for factor in FACTORS:
        running.settle(bodies[0])
        outcome = OpenLoop(factor * capacity, seconds, deadline)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_arrivals(running.port, requests, outcome))
        outcomes.append(outcome)
    return outcomes


async def _arrivals(port: int, requests: Sequence[bytes], outcome: OpenLoop) -> None:
    loop = asyncio.get_running_loop()
    rng = random.Random(0)  # noqa: S311
    pool = Pool(port, outcome.deadline + _PATIENCE)

    async def ask(request: bytes) -> None:
        began = loop.time()
        try:
            status = (await pool.exchange(request)).status
        except Lost:
            outcome.lost += 1
            return
        outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
        if status == 200:
            outcome.latencies.append(loop.time() - began)

    due = loop.time()
    ends = due + outcome.seconds
    async with asyncio.TaskGroup() as group:
        while (due := due + rng.expovariate(outcome.offered)) < ends:
            await asyncio.sleep(max(0.0, due - loop.time()))
            outcome.lags.append(loop.time() - due)
            group.create_task(ask(rng.choice(requests)))
    pool.close()


def _request(target: str, body: Body, deadline: float) -> bytes:
    head = (
        f"POST {target} HTTP/1.1\r\nHost: bench\r\nContent-Type: {body.content_type}\r\n"
        f"Content-Length: {len(body.data)}\r\nX-Request-Timeout: {deadline:g}\r\n\r\n"
    )
    return head.encode() + body.data
