"""A closed loop of clients whose requests are counted by phase."""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from benchmarks.soak.tally import percentile
from benchmarks.soak.wire import NoResponse, Pool

# Longer than any timeout of the proxy and of the service. A request without a response by then is lost.
_RESPONSE_TIMEOUT = 60.0


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
