"""The phases: capacity with a closed loop, load with an open one, recovery with a closed one again."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from benchmarks.soak.clients import Answers, ask, upload_slowly, vanish
from benchmarks.soak.samples import Sample
from benchmarks.soak.tally import Tally
from benchmarks.soak.wire import Pool

_WORKERS = 64
_SLOW_UPLOADS = 8
_BAD = 0.1
_VANISHING = 0.05
_WINDOW = 1.0


@dataclass(frozen=True, slots=True)
class Mix:
    """What is sent, and the answers that the good ones got alone."""

    good: Sequence[Sample]
    bad: Sequence[Sample]
    answers: Answers


@dataclass(frozen=True, slots=True)
class Overload:
    """When the last request was sent, in the loop's time, and the clients that still wait."""

    ended: float
    waiting: Sequence[asyncio.Task[None]]


@contextlib.asynccontextmanager
async def closed_loop(pool: Pool, mix: Mix, tally: Tally) -> AsyncIterator[None]:
    """Clients that each send a good request as soon as the one before is answered."""

    async def work(seed: int) -> None:
        rng = random.Random(seed)  # noqa: S311
        while not stop.is_set():
            refused = tally.statuses[503]
            await ask(pool, rng.choice(mix.good), mix.answers, tally)
            if tally.statuses[503] > refused:
                await asyncio.sleep(0.1)  # somebody was told to come back later: all hold back a little

    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for seed in range(_WORKERS):
            group.create_task(work(seed))
        try:
            yield
        finally:
            stop.set()


async def measure_capacity(pool: Pool, mix: Mix, seconds: float, tally: Tally) -> float:
    """Good requests answered a second when as many clients as fill its batches ask without a pause."""
    loop = asyncio.get_running_loop()
    async with closed_loop(pool, mix, tally):
        await asyncio.sleep(min(1.0, seconds / 2))  # until the first batches are full
        began, before = loop.time(), len(tally.seconds)
        await asyncio.sleep(seconds)
        return (len(tally.seconds) - before) / (loop.time() - began)


async def overload(pool: Pool, mix: Mix, *, rate: float, seconds: float, seed: int, tally: Tally) -> Overload:
    """Send so many good requests a second, whatever becomes of those before, with bad and ill-behaved ones beside.

    Args:
        pool: connections to the service.
        mix: what is sent.
        rate: good requests a second; the bad ones and those that vanish come on top.
        seconds: how long.
        seed: of the order and the gaps.
        tally: takes the outcomes.

    Returns:
        As soon as the last request is sent.
    """
    loop = asyncio.get_running_loop()
    rng = random.Random(seed)  # noqa: S311
    stop = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()

    def another() -> asyncio.Task[None]:
        draw = rng.random()
        if draw < _VANISHING:
            return loop.create_task(vanish(pool, rng.choice(mix.good), tally, rng))
        if draw < _VANISHING + _BAD:
            return loop.create_task(ask(pool, rng.choice(mix.bad), mix.answers, tally))
        return loop.create_task(ask(pool, rng.choice(mix.good), mix.answers, tally))

    slow = [loop.create_task(upload_slowly(pool, mix.good[0], tally, stop)) for _ in range(_SLOW_UPLOADS)]
    arrivals = rate / (1 - _BAD - _VANISHING)
    due = loop.time()
    ends = due + seconds
    while (due := due + rng.expovariate(arrivals)) < ends:
        await asyncio.sleep(max(0.0, due - loop.time()))
        tally.lags.append(loop.time() - due)
        task = another()
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    stop.set()
    return Overload(loop.time(), [*tasks, *slow])


async def recovery(pool: Pool, mix: Mix, *, full: float, since: float, patience: float, tally: Tally) -> float | None:
    """Seconds from `since` until new callers get 90 % of the full rate for a second; None if not within `patience`."""
    loop = asyncio.get_running_loop()
    counts: list[tuple[float, int]] = []

    def up_to(when: float) -> int:
        return max((count for at, count in counts if at <= when), default=0)

    async with closed_loop(pool, mix, tally):
        while (now := loop.time()) < since + patience:
            counts.append((now, len(tally.seconds)))
            if now - counts[0][0] >= _WINDOW and counts[-1][1] - up_to(now - _WINDOW) >= 0.9 * full * _WINDOW:
                return now - _WINDOW - since
            await asyncio.sleep(0.05)
    return None
