"""What is printed: a table for people, and what must hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.soak.tally import Tally, percentile

PROBE_LIMIT = 0.1
"""Seconds that 99 of 100 probes must be answered in."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that was found.

    Attributes:
        capacity: good requests a second, closed loop.
        offered: good requests a second under load, planned.
        seconds: of load.
        tally: under load.
        aside: before and after it, which must be as flawless.
        probe_seconds: how long each probe took.
        probes_failed: those that were no 200.
        memory: MiB of the service before, after and at most; None where the system does not tell.
        recovery: seconds until the full rate was back; None if it did not come.
        exit_code: after SIGTERM; None if it had to be killed.
    """

    capacity: float
    offered: float
    seconds: float
    tally: Tally
    aside: Tally
    probe_seconds: list[float]
    probes_failed: Mapping[str, int]
    memory: tuple[float, float, float] | None
    recovery: float | None
    exit_code: int | None

    def broken(self) -> list[str]:
        """What must hold and does not."""
        both = (self.tally, self.aside)
        musts = {
            "some are accepted": self.tally.statuses[200] > 0,
            "no request is lost": not any(each.lost for each in both),
            "no answer is wrong": not any(each.wrong for each in both),
            "no status is unexpected": not any(each.unexpected for each in both),
            "every 503 has Retry-After": not any(each.hasty for each in both),
            "every probe is answered 200": not self.probes_failed,
            "p99 of probes is under 100 ms": percentile(self.probe_seconds, 99) < PROBE_LIMIT,
            "it recovers": self.recovery is not None,
            "it exits with 0": self.exit_code == 0,
        }
        return [name for name, holds in musts.items() if not holds]

    def summary(self) -> dict[str, Any]:
        """Everything as JSON has it: times in seconds, memory in MiB."""
        tally, aside = self.tally, self.aside
        before, after, most = self.memory or (None, None, None)
        return {
            "capacity": _rounded(self.capacity),
            "offered": _rounded(self.offered),
            "seconds": _rounded(self.seconds),
            "sent": dict(tally.sent),
            "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
            "ill_behaved": dict(tally.ill),
            "lost": dict(tally.lost + aside.lost),
            "wrong": dict(tally.wrong + aside.wrong),
            "unexpected": dict(tally.unexpected + aside.unexpected),
            "without_retry_after": tally.hasty + aside.hasty,
            "accepted_p50": _rounded(percentile(tally.seconds, 50)),
            "accepted_p99": _rounded(percentile(tally.seconds, 99)),
            "client_lag_p99": _rounded(percentile(tally.lags, 99)),
            "probes": len(self.probe_seconds),
            "probes_p99": _rounded(percentile(self.probe_seconds, 99)),
            "probes_failed": dict(self.probes_failed),
            "memory_before": _rounded(before),
            "memory_after": _rounded(after),
            "memory_most": _rounded(most),
            "recovery": _rounded(self.recovery),
            "exit_code": self.exit_code,
            "broken": self.broken(),
        }


def table(outcome: Outcome, model: str) -> Table:
    """The outcome for people."""
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
    out.add_row("sent", f"{sum(tally.sent.values()):,}", _listed(tally.sent))
    for status, count in sorted(tally.statuses.items()):
        out.add_row(f"answered {status}", f"{count:,}", "")
    out.add_row("slow and vanishing", f"{sum(tally.ill.values()):,}", _listed(tally.ill))
    out.add_section()
    for name, heading in (("lost", "lost"), ("wrong", "wrong answers"), ("unexpected", "unexpected statuses")):
        out.add_row(heading, f"{sum(summary[name].values()):,}", _listed(summary[name]) or "must be 0")
    out.add_row("503 without Retry-After", f"{summary['without_retry_after']:,}", "must be 0")
    out.add_row(
        "probes not 200", f"{sum(outcome.probes_failed.values())}", _listed(outcome.probes_failed) or "must be 0"
    )
    out.add_row("p99 of probes", _ms(summary["probes_p99"]), f"of {summary['probes']:,}; must be < 100 ms")
    out.add_section()
    out.add_row("p50 of accepted", _ms(summary["accepted_p50"]), "")
    out.add_row("p99 of accepted", _ms(summary["accepted_p99"]), "")
    out.add_row("p99 of the client's lag", _ms(summary["client_lag_p99"]), "its own fault, not the service's")
    if outcome.memory:
        before, after, most = outcome.memory
        out.add_row("memory", f"{after:.0f} MiB", f"before {before:.0f} MiB, at most {most:.0f} MiB")
    back = "never" if outcome.recovery is None else f"{outcome.recovery:.1f} s"
    out.add_row("recovered after", back, "to 90 % of capacity, for a second")
    out.add_row("exit code", str(outcome.exit_code), "must be 0")
    return out


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def _rounded(value: float | None) -> float | None:
    """For JSON, which has no NaN."""
    return None if value is None or math.isnan(value) else round(value, 4)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
