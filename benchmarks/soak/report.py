"""The results of a soak: requirements, a table and JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.soak.tally import Tally, percentile

PROBE_LIMIT = 0.1
"""Upper bound of the 99th percentile of the probes' latency, in seconds."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All results.

    Attributes:
        capacity: good requests per second in a closed loop.
        offered: planned good requests per second under load.
        seconds: duration of the load.
        tally: counts under load.
        tally_without_load: counts before and after it. The same requirements apply.
        probe_latencies: seconds of each probe.
        probes_failed: probes without status 200.
        memory: resident memory of the service in MiB before and after the load, and its peak; None without /proc.
        swaps: swaps of weights under load by the status of their response; None if there were to be none.
        recovery: seconds until the capacity was reached again; None if it was not.
        exit_code: after SIGTERM; None if it did not exit.
    """

    capacity: float
    offered: float
    seconds: float
    tally: Tally
    tally_without_load: Tally
    probe_latencies: list[float]
    probes_failed: Mapping[str, int]
    memory: tuple[float, float, float] | None
    swaps: Mapping[str, int] | None
    recovery: float | None
    exit_code: int | None

    def violations(self) -> list[str]:
        """The requirements that do not hold."""
        tallies = (self.tally, self.tally_without_load)
        requirements = {
            "some requests succeed": self.tally.statuses[200] > 0,
            "no request is lost": not any(each.lost for each in tallies),
            "no prediction is wrong": not any(each.wrong for each in tallies),
            "every status is expected": not any(each.unexpected for each in tallies),
            "every 503 has Retry-After": not any(each.without_retry_after for each in tallies),
            "every probe has status 200": not self.probes_failed,
            "p99 of probes is below 100 ms": percentile(self.probe_latencies, 99) < PROBE_LIMIT,
            "every swap succeeds": self.swaps is None or set(self.swaps) == {"200"},
            "the service recovers": self.recovery is not None,
            "the service exits with 0": self.exit_code == 0,
        }
        return [name for name, holds in requirements.items() if not holds]

    def summary(self) -> dict[str, Any]:
        """All results for JSON: times in seconds, memory in MiB."""
        tally, other = self.tally, self.tally_without_load
        before, after, peak = self.memory or (None, None, None)
        return {
            "capacity": _rounded(self.capacity),
            "offered": _rounded(self.offered),
            "seconds": _rounded(self.seconds),
            "sent": dict(tally.sent),
            "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
            "misbehaving": dict(tally.misbehaving),
            "lost": dict(tally.lost + other.lost),
            "wrong": dict(tally.wrong + other.wrong),
            "unexpected": dict(tally.unexpected + other.unexpected),
            "without_retry_after": tally.without_retry_after + other.without_retry_after,
            "accepted_p50": _rounded(percentile(tally.latencies, 50)),
            "accepted_p99": _rounded(percentile(tally.latencies, 99)),
            "client_lag_p99": _rounded(percentile(tally.lags, 99)),
            "probes": len(self.probe_latencies),
            "probes_p99": _rounded(percentile(self.probe_latencies, 99)),
            "probes_failed": dict(self.probes_failed),
            "memory_before": _rounded(before),
            "memory_after": _rounded(after),
            "memory_peak": _rounded(peak),
            "swaps": None if self.swaps is None else dict(self.swaps),
            "recovery": _rounded(self.recovery),
            "exit_code": self.exit_code,
            "violations": self.violations(),
        }


def table(outcome: Outcome, model: str) -> Table:
    """The results as a table."""
    tally, summary = outcome.tally, outcome.summary()
    out = Table(
        title=f"{model}: {outcome.seconds:.0f} s at {outcome.offered:.1f} good requests/s, "
        f"capacity {outcome.capacity:.1f}/s",
        title_justify="left",
        show_header=False,
    )
    out.add_column()
    out.add_column(justify="right")
    out.add_column()
    out.add_row("sent", f"{sum(tally.sent.values()):,}", _format_counts(tally.sent))
    for status, count in sorted(tally.statuses.items()):
        out.add_row(f"status {status}", f"{count:,}", "")
    out.add_row("slow and disconnecting", f"{sum(tally.misbehaving.values()):,}", _format_counts(tally.misbehaving))
    out.add_section()
    for name, heading in (("lost", "lost"), ("wrong", "wrong predictions"), ("unexpected", "unexpected statuses")):
        out.add_row(heading, f"{sum(summary[name].values()):,}", _format_counts(summary[name]) or "must be 0")
    out.add_row("503 without Retry-After", f"{summary['without_retry_after']:,}", "must be 0")
    out.add_row(
        "probes not 200", f"{sum(outcome.probes_failed.values())}", _format_counts(outcome.probes_failed) or "must be 0"
    )
    out.add_row("p99 of probes", _ms(summary["probes_p99"]), f"of {summary['probes']:,}; must be below 100 ms")
    out.add_section()
    out.add_row("p50 of successful requests", _ms(summary["accepted_p50"]), "")
    out.add_row("p99 of successful requests", _ms(summary["accepted_p99"]), "")
    out.add_row(
        "p99 of the client's lag", _ms(summary["client_lag_p99"]), "delay before sending, not part of a latency"
    )
    if outcome.memory:
        before, after, peak = outcome.memory
        out.add_row("memory", f"{after:.0f} MiB", f"before {before:.0f} MiB, peak {peak:.0f} MiB")
    if outcome.swaps is not None:
        out.add_row("swaps of weights", f"{sum(outcome.swaps.values())}", "all must have status 200")
    recovery = "never" if outcome.recovery is None else f"{outcome.recovery:.1f} s"
    out.add_row("recovered after", recovery, "to 90 % of the capacity for a second")
    out.add_row("exit code", str(outcome.exit_code), "must be 0")
    return out


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _rounded(value: float | None) -> float | None:
    """For JSON, which has no NaN."""
    return None if value is None or math.isnan(value) else round(value, 4)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
