"""A discrete-event simulation of replicas behind a proxy, with the admission control of the service itself."""

import math
import random
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from app.engine.admission import Admission, SharedLimit
from app.engine.errors import QueueFull
from benchmarks.soak.tally import percentile

_MODEL = "model"

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a batch in one replica: `fixed + per_image * images`.

    A replica decodes and runs batches on the same cores, so the work of all stages adds up. A refused request takes
    `refusal` seconds, which delay the next batch.
    """

    fixed: float
    per_image: float
    refusal: float = 0.0

    @classmethod
    def of(cls, *, latency: float, rate: float, images: int, refusal: float = 0.0) -> "Cost":
        """The cost that fits two measurements.

        Args:
            latency: seconds of a request that is alone.
            rate: images per second with as many requests in progress as `images`.
            images: more than 1.
            refusal: seconds of a refused request.
        """
        per_image = max(images / rate - latency, 0.0) / (images - 1)
        return cls(max(latency - per_image, 0.0), per_image, refusal)

    def seconds(self, images: int) -> float:
        """Of a batch with so many images."""
        return self.fixed + self.per_image * images


@dataclass(frozen=True, slots=True)
class Bursts:
    """Poisson arrivals whose rate is higher in regular bursts.

    Attributes:
        rate: requests per second between bursts.
        factor: rate in a burst, as a multiple.
        length: seconds of a burst.
        period: seconds from one burst to the next. The first one begins after `period - length`.
    """

    rate: float
    factor: float = 3.0
    length: float = 2.0
    period: float = 10.0

    def arrivals(self, seconds: float, seed: int) -> list[float]:
        """Times of the requests from 0 to `seconds`."""
        rng = random.Random(seed)  # noqa: S311
        times = []
        now = 0.0
        while (now := now + rng.expovariate(self.rate * self.factor)) < seconds:
            in_burst = now % self.period >= self.period - self.length
            if in_burst or rng.random() < 1 / self.factor:
                times.append(now)
        return times


@dataclass(slots=True)
class Outcome:
    """The outcome of all requests.

    Attributes:
        latencies: seconds of those that were classified before their deadline.
        refused: number of those that admission control refused.
        late: number of those whose deadline passed.
    """

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    late: int = 0

    @property
    def requests(self) -> int:
        """Number of requests."""
        return len(self.latencies) + self.refused + self.late

    @property
    def p50(self) -> float:
        """Median latency in milliseconds."""
        return percentile(self.latencies, 50) * 1000

    @property
    def p99(self) -> float:
        """99th percentile of the latency in milliseconds."""
        return percentile(self.latencies, 99) * 1000

    @property
    def lost_share(self) -> float:
        """Share of the requests that were refused or late."""
        return (self.refused + self.late) / self.requests if self.requests else math.nan


@dataclass(slots=True)
class _Item:
    admitted: float
    deadline: float
    done: simpy.Event


class _Replica:
    """One process of the service: admission, a queue, and batches of what is in the queue when the engine is free."""

    def __init__(self, env: simpy.Environment, cost: Cost, *, queue_size: int, max_batch: int) -> None:
        self._env = env
        self._cost = cost
        self._max_batch = max_batch
        self._images = SharedLimit(queue_size, [_MODEL])
        self._admission = Admission(_MODEL, self._images, clock=lambda: float(env.now))
        self._queue: deque[_Item] = deque()
        self._refused = 0
        self._not_empty = env.event()
        env.process(self._run())

    @property
    def in_progress(self) -> int:
        """Requests in progress, by which the proxy chooses."""
        return self._images.used[_MODEL]

    def request(self, limit: float, outcome: Outcome) -> Process:
        """One request from its arrival to its response."""
        began = float(self._env.now)
        try:
            self._admission.admit(1, deadline=began + limit)
        except QueueFull:
            outcome.refused += 1
            self._refused += 1
            return
        item = _Item(began, began + limit, self._env.event())
        self._queue.append(item)
        if not self._not_empty.triggered:
            self._not_empty.succeed()
        yield item.done | self._env.timeout(limit)
        self._admission.release(1)
        if item.done.triggered:
            outcome.latencies.append(float(self._env.now) - began)
        else:
            outcome.late += 1

    def _run(self) -> Process:
        while True:
            yield self._not_empty
            batch: list[_Item] = []
            while self._queue and len(batch) < self._max_batch:
                item = self._queue.popleft()
                if item.deadline > self._env.now:
                    batch.append(item)
            if not self._queue:
                self._not_empty = self._env.event()
            if batch:
                refusals, self._refused = self._refused, 0
                yield self._env.timeout(self._cost.seconds(len(batch)) + self._cost.refusal * refusals)
                for item in batch:
                    item.done.succeed()
                self._admission.completed(len(batch), since=batch[0].admitted)


def simulate(
    arrivals: Sequence[float],
    *,
    replicas: int,
    cost: Cost,
    limit: float,
    queue_size: int = 256,
    max_batch: int = 32,
) -> Outcome:
    """Simulate requests with one image each.

    Args:
        arrivals: times of the requests in seconds, ascending.
        replicas: number of replicas. A request goes to the one with the fewest in progress, as in haproxy.cfg.
        cost: of a batch.
        limit: seconds from the arrival of a request to its deadline.
        queue_size: TENFOLD_QUEUE_SIZE.
        max_batch: images in one batch at most.
    """
    env = simpy.Environment()
    group = [_Replica(env, cost, queue_size=queue_size, max_batch=max_batch) for _ in range(replicas)]
    outcome = Outcome()

    def arrive() -> Process:
        for at in arrivals:
            yield env.timeout(at - env.now)
            env.process(min(group, key=lambda replica: replica.in_progress).request(limit, outcome))

    env.process(arrive())
    env.run(until=arrivals[-1] + 2 * limit if arrivals else None)
    return outcome
