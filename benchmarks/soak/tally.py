"""Counting what became of the requests, and what must hold of it."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.soak.samples import OVERLOADED, Sample
from benchmarks.soak.wire import Reply

TOLERANCE = 0.02
"""Of a probability: bfloat16 sums differ in their last bits with the size of the batch."""


def answer_of(reply: Reply) -> list[Any]:
    """What an answer says of each picture: label -> probability, likeliest first, or the type of its problem."""
    results = json.loads(reply.body)["results"]
    return [
        result["problem"]["type"]
        if "problem" in result
        else {ranked["label"]: ranked["probability"] for ranked in result["top_k"]}
        for result in results
    ]


def same(alone: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether two answers agree: the same first label and every probability within `TOLERANCE`.

    The first label may be another where the two were as good as equal.
    """
    return len(alone) == len(now) and all(map(_agree, alone, now))


def _agree(alone: Any, now: Any) -> bool:
    if not (isinstance(alone, dict) and isinstance(now, dict)):
        return bool(alone == now)
    if alone.keys() != now.keys() or any(abs(alone[label] - now[label]) > TOLERANCE for label in alone):
        return False
    first, first_now = next(iter(alone)), next(iter(now))
    return bool(alone[first] - alone[first_now] <= 2 * TOLERANCE)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of `values` that so many percent do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


@dataclass(slots=True)
class Tally:
    """What became of the requests under load.

    Attributes:
        sent: by kind.
        statuses: of well-behaved clients' answers.
        lost: of well-behaved clients, by how it ended.
        wrong: answers that are not the one given before the load, by kind.
        unexpected: statuses that are not right for what was sent, as "kind: status".
        hasty: 503 without Retry-After.
        ill: what became of the slow and the vanishing, as "kind: outcome".
        seconds: latencies of the accepted.
        lags: seconds that a request was sent later than planned, because the client could not keep up.
    """

    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    hasty: int = 0
    ill: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)

    def record(self, sample: Sample, reply: Reply, seconds: float, alone: Sequence[Any] | None) -> None:
        """Count an answer.

        Args:
            sample: what was sent.
            reply: what came back.
            seconds: after how long.
            alone: what `answer_of` said of the same request before the load; None if it is to be refused.
        """
        self.statuses[reply.status] += 1
        self.judge(sample.kind, reply, sample.statuses)
        if reply.status == 200 and alone is not None:
            self.seconds.append(seconds)
            try:
                if not same(alone, answer_of(reply)):
                    self.wrong[sample.kind] += 1
            except (ValueError, KeyError, TypeError):
                self.wrong[sample.kind] += 1

    def judge(self, kind: str, reply: Reply, right: frozenset[int]) -> None:
        """Note an answer that is not one of `right`, nor an overloaded service's."""
        if reply.status not in right | OVERLOADED:
            self.unexpected[f"{kind}: {reply.status}"] += 1
        if reply.status == 503 and not reply.headers.get("retry-after", "").isdecimal():
            self.hasty += 1
