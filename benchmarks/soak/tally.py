"""Counts of responses, latencies and errors."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.soak.samples import OVERLOADED, Sample
from benchmarks.soak.wire import Response

TOLERANCE = 0.02
"""Largest difference of a probability. The rounding of bfloat16 sums depends on the batch size."""


def predictions_of(response: Response) -> list[Any]:
    """For each image label -> probability, most probable first, or the type of its problem."""
    results = json.loads(response.body)["results"]
    return [
        result["problem"]["type"]
        if "problem" in result
        else {ranked["label"]: ranked["probability"] for ranked in result["top_k"]}
        for result in results
    ]


def equivalent(reference: Sequence[Any], predictions: Sequence[Any]) -> bool:
    """Whether all predictions have the same first label and probabilities within `TOLERANCE`.

    The first labels may differ if their probabilities are equal within the tolerance.
    """
    return len(reference) == len(predictions) and all(map(_agree, reference, predictions))


def _agree(reference: Any, prediction: Any) -> bool:
    if not (isinstance(reference, dict) and isinstance(prediction, dict)):
        return bool(reference == prediction)
    if reference.keys() != prediction.keys():
        return False
    if any(abs(reference[label] - prediction[label]) > TOLERANCE for label in reference):
        return False
    return bool(reference[next(iter(reference))] - reference[next(iter(prediction))] <= 2 * TOLERANCE)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; NaN if there are no values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


@dataclass(slots=True)
class Tally:
    """Counts of requests and their outcomes.

    Attributes:
        sent: requests by kind.
        statuses: responses to well-behaved clients by status.
        lost: requests of well-behaved clients without a response, by kind and reason.
        wrong: predictions that differ from the reference, by kind.
        unexpected: statuses that do not fit the request, as "kind: status".
        without_retry_after: 503 responses without Retry-After.
        misbehaving: outcomes of slow and disconnecting clients, as "kind: outcome".
        latencies: seconds of successful requests.
        lags: seconds between the planned and the actual time of sending, because the client was too slow.
    """

    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    without_retry_after: int = 0
    misbehaving: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)

    def record(self, sample: Sample, response: Response, latency: float, reference: Sequence[Any] | None) -> None:
        """Count a response.

        Args:
            sample: the request.
            response: its response.
            latency: in seconds.
            reference: `predictions_of` the same request before the load; None if it must be rejected.
        """
        self.statuses[response.status] += 1
        self.check_status(sample.kind, response, sample.statuses)
        if response.status == 200 and reference is not None:
            self.latencies.append(latency)
            try:
                if not equivalent(reference, predictions_of(response)):
                    self.wrong[sample.kind] += 1
            except (ValueError, KeyError, TypeError):
                self.wrong[sample.kind] += 1

    def check_status(self, kind: str, response: Response, expected: frozenset[int]) -> None:
        """Count the response if its status is neither one of `expected` nor that of an overloaded service."""
        if response.status not in expected | OVERLOADED:
            self.unexpected[f"{kind}: {response.status}"] += 1
        if response.status == 503 and not response.headers.get("retry-after", "").isdecimal():
            self.without_retry_after += 1
