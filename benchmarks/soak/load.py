"""The phases of a soak: capacity in a closed loop, load in an open loop, and recovery in a closed loop."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from benchmarks.soak.clients import References, disconnect, send, upload_slowly
from benchmarks.soak.samples import Sample
from benchmarks.soak.tally import Tally
from benchmarks.soak.wire import Pool

_CLIENTS = 64
_SLOW_UPLOADS = 8
_BAD = 0.1
_DISCONNECTING = 0.05
_WINDOW = 1.0


@dataclass(frozen=True, slots=True)
class Mix:
    """The samples, and the reference predictions for the good ones."""

    good: Sequence[Sample]
    bad: Sequence[Sample]
    references: References


@dataclass(frozen=True, slots=True)
class Overload:
    """The time of the last request on the event loop's clock, and the clients that still wait for a response."""

    ended: float
    waiting: Sequence[asyncio.Task[None]]


@contextlib.asynccontextmanager
async def closed_loop(pool: Pool, mix: Mix, tally: Tally) -> AsyncIterator[None]:
    """Run clients that each send a good request as soon as they have the response to the previous one."""

    async def run_client(seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311
        while not stop.is_set():
            rejected = tally.statuses[503]
            await send(pool, rng.choice(mix.good), mix.references, tally)
            if tally.statuses[503] > rejected:
                await asyncio.sleep(0.1)  # a simple form of Retry-After

    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for seed in range(_CLIENTS):
            group.create_task(run_client(seed))
        try:
            yield
        finally:
            stop.set()


async def measure_capacity(pool: Pool, mix: Mix, seconds: float, tally: Tally) -> float:
    """Successful requests per second in a closed loop with enough clients to fill the batches."""
    loop = asyncio.get_running_loop()
    async with closed_loop(pool, mix, tally):
        await asyncio.sleep(min(1.0, seconds / 2))  # warm-up, until batches are full
        started, before = loop.time(), len(tally.latencies)
        await asyncio.sleep(seconds)
        return (len(tally.latencies) - before) / (loop.time() - started)


async def overload(pool: Pool, mix: Mix, *, rate: float, seconds: float, seed: int, tally: Tally) -> Overload:
    """Send good requests at a rate that does not depend on the responses, and bad and misbehaving ones with them.

    Args:
        pool: connections to the service.
        mix: the samples.
        rate: good requests per second. Bad and disconnecting ones come in addition.
        seconds: duration.
        seed: seed of the order and of the intervals.
        tally: counts the outcomes.

    Returns:
        As soon as the last request is sent.
    """
    loop = asyncio.get_running_loop()
    rng = random.Random(seed)  # noqa: S311
    stop = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def start_request() -> asyncio.Task[None]:
        draw = rng.random()
        if draw < _DISCONNECTING:
            return loop.create_task(disconnect(pool, rng.choice(mix.good), tally, rng))
        if draw < _DISCONNECTING + _BAD:
            return loop.create_task(send(pool, rng.choice(mix.bad), mix.references, tally))
        return loop.create_task(send(pool, rng.choice(mix.good), mix.references, tally))

    slow = [loop.create_task(upload_slowly(pool, mix.good[0], tally, stop)) for _ in range(_SLOW_UPLOADS)]
    arrivals = rate / (1 - _BAD - _DISCONNECTING)
    due = loop.time()
    ends = due + seconds
    while (due := due + rng.expovariate(arrivals)) < ends:
        await asyncio.sleep(max(0.0, due - loop.time()))
        tally.lags.append(loop.time() - due)
        task = start_request()
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    stop.set()
    return Overload(loop.time(), [*tasks, *slow])


async def recovery_time(
    pool: Pool, mix: Mix, *, capacity: float, since: float, timeout: float, tally: Tally
) -> float | None:
    """Seconds from `since` until new clients get 90 % of the capacity for a second; None after `timeout` seconds."""
    loop = asyncio.get_running_loop()
    counts: list[tuple[float, int]] = []

    def count_at(when: float) -> int:
        return max((count for time, count in counts if time <= when), default=0)

    async with closed_loop(pool, mix, tally):
        while (now := loop.time()) < since + timeout:
            counts.append((now, len(tally.latencies)))
            if now - counts[0][0] >= _WINDOW and counts[-1][1] - count_at(now - _WINDOW) >= 0.9 * capacity * _WINDOW:
                return now - _WINDOW - since
            await asyncio.sleep(0.05)
    return None
