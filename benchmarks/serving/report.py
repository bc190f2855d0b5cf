"""The results as rows, as a table and as JSON."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from benchmarks.serving.machine import hardware, versions
from benchmarks.serving.mixed import LARGE_CONNECTIONS, SMALL_CONNECTIONS, MixedResults
from benchmarks.serving.rounds import Case, Results
from benchmarks.serving.servers import PEERS, SERVERS
from benchmarks.serving.tensors import PNG, TensorCase, TensorResults
from benchmarks.serving.wrk import Load


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds for a server under one load.

    Attributes:
        case: the load.
        server: name of the server.
        rate: successful requests per second.
        p50: median latency in milliseconds; None without responses.
        p99: 99th percentile of the latency in milliseconds; None without responses.
        errors: sum over all rounds.
        to_best_peer: rate divided by that of the best peer under the same load; None without one, and for `front`.
        to_naive: rate divided by that of the naive server; None without it, and for `front`.
        share: rate of Tenfold divided by 1 / (1 / ceiling + 1 / front), the rate if engine and service take turns.
    """

    case: Case
    server: str
    rate: float
    p50: float | None
    p99: float | None
    errors: int
    to_best_peer: float | None
    to_naive: float | None
    share: float | None


@dataclass(frozen=True, slots=True)
class TensorRow:
    """Medians over the rounds for Tenfold with tensors.

    Attributes:
        case: the load.
        rate: successful requests per second.
        images: images per second.
        p50: median latency in milliseconds; None without responses.
        p99: 99th percentile of the latency in milliseconds; None without responses.
        errors: sum over all rounds.
        to_png: images per second divided by those of PNGs in raw bodies.
        to_ceiling: images per second divided by those of the engine alone in batches.
    """

    case: TensorCase
    rate: float
    images: float
    p50: float | None
    p99: float | None
    errors: int
    to_png: float | None
    to_ceiling: float


def tensor_rows(results: TensorResults) -> list[TensorRow]:
    """A row for each case."""
    rates = {case: statistics.median(load.rate for load in loads) for case, loads in results.loads.items()}
    ceiling = statistics.median(each.rate for each in results.ceilings)
    return [
        TensorRow(
            case,
            rates[case],
            rates[case] * case.images,
            _median(loads, lambda load: load.p50),
            _median(loads, lambda load: load.p99),
            sum(load.errors for load in loads),
            _ratio(rates[case] * case.images, rates[PNG]),
            rates[case] * case.images / ceiling,
        )
        for case, loads in results.loads.items()
    ]


@dataclass(frozen=True, slots=True)
class MixedRow:
    """Medians over the rounds for a server with small and large images.

    Attributes:
        server: name of the server.
        p99_alone: 99th percentile of the latency of small images in milliseconds, without large ones.
        p99: the same while large images are sent.
        p99_ratio: the second divided by the first.
        large_alone: large images per second, without small ones.
        large: the same while small images are sent.
        large_ratio: the second divided by the first.
        small_alone: small images per second, without large ones.
        small: the same while large images are sent.
        errors: sum over all measurements.
    """

    server: str
    p99_alone: float | None
    p99: float | None
    p99_ratio: float | None
    large_alone: float
    large: float
    large_ratio: float | None
    small_alone: float
    small: float
    errors: int


def mixed_rows(mixed: Mapping[str, MixedResults]) -> list[MixedRow]:
    """A row for each server."""
    return [_mixed_row(name, results) for name, results in mixed.items()]


def _mixed_row(name: str, results: MixedResults) -> MixedRow:
    p99_alone = _median(results.small_alone, lambda load: load.p99)
    p99 = _median(results.small, lambda load: load.p99)
    large_alone, large, small_alone, small = (
        statistics.median(load.rate for load in loads)
        for loads in (results.large_alone, results.large, results.small_alone, results.small)
    )
    return MixedRow(
        name,
        p99_alone=p99_alone,
        p99=p99,
        p99_ratio=None if p99 is None else _ratio(p99, p99_alone),
        large_alone=large_alone,
        large=large,
        large_ratio=_ratio(large, large_alone),
        small_alone=small_alone,
        small=small,
        errors=sum(
            load.errors
            for loads in (results.small_alone, results.large_alone, results.small, results.large)
            for load in loads
        ),
    )


def rows_of(results: Results) -> list[Row]:
    """A row for each load and server, in the order of the servers."""
    return [
        _row(results, case, server.name)
        for case in results.loads
        for server in SERVERS
        if server.name in results.loads[case]
    ]


def _row(results: Results, case: Case, name: str) -> Row:
    loads = results.loads[case][name]
    rate = statistics.median(load.rate for load in loads)
    peers = [results.rate(case, peer) or 0.0 for peer in PEERS]
    front = results.rate(case, "front")
    ceiling = ceiling_rate(results, case.connections)
    possible = 1 / (1 / ceiling + 1 / front) if ceiling and front else None
    return Row(
        case,
        name,
        rate,
        _median(loads, lambda load: load.p50),
        _median(loads, lambda load: load.p99),
        sum(load.errors for load in loads),
        None if name == "front" else _ratio(rate, max(peers)),
        None if name == "front" else _ratio(rate, results.rate(case, "naive")),
        _ratio(rate, possible) if name == "tenfold" else None,
    )


def ceiling_rate(results: Results, connections: int) -> float | None:
    """Median images per second of the engine alone: single images for one connection, else batches."""
    if not results.ceilings:
        return None
    return statistics.median(1000 / each.latency if connections == 1 else each.rate for each in results.ceilings)


def _median(loads: Sequence[Load], of: Callable[[Load], float | None]) -> float | None:
    values = [value for load in loads if (value := of(load)) is not None]
    return statistics.median(values) if values else None


def _ratio(value: float, base: float | None) -> float | None:
    return value / base if base else None


def table(results: Results) -> Group:
    """The results as tables."""
    out = Table(title="medians over the rounds", title_justify="left")
    for heading in ("server", "payload", "body"):
        out.add_column(heading)
    for heading in (
        "connections", "requests/s", "p50 ms", "p99 ms", "errors", "to best peer", "to naive", "of possible",
    ):  # fmt: skip
        out.add_column(heading, justify="right")
    previous = None
    for row in rows_of(results):
        if previous not in (None, row.case):
            out.add_section()
        previous = row.case
        out.add_row(
            row.server, row.case.payload, row.case.encoding, str(row.case.connections),
            _number(row.rate), _number(row.p50), _number(row.p99), str(row.errors),
            _times(row.to_best_peer), _times(row.to_naive), "-" if row.share is None else f"{row.share:.0%}",
        )  # fmt: skip
    out.add_section()
    for name, reason in results.missing.items():
        out.add_row(name, reason)
    if results.ceilings:
        latency = statistics.median(each.latency for each in results.ceilings)
        out.add_row("ceiling", "pixels", "batches", "-", _number(ceiling_rate(results, 32)))
        out.add_row("ceiling", "pixels", "single", "-", _number(ceiling_rate(results, 1)), _number(latency))
    parts = [out]
    if results.tensors:
        parts.append(_tensor_table(results.tensors))
    if results.mixed:
        parts.append(_mixed_table(results.mixed))
    if results.open_loop:
        parts.append(_open_loop_table(results))
    return Group(*parts)


def _tensor_table(results: TensorResults) -> Table:
    out = Table(title="tenfold, tensors by the Open Inference Protocol", title_justify="left")
    out.add_column("payload")
    for heading in ("connections", "requests/s", "images/s", "p50 ms", "p99 ms", "errors", "to PNG", "to ceiling"):
        out.add_column(heading, justify="right")
    for row in tensor_rows(results):
        out.add_row(
            row.case.name, str(row.case.connections), _number(row.rate), _number(row.images),
            _number(row.p50), _number(row.p99), str(row.errors), _times(row.to_png), f"{row.to_ceiling:.0%}",
        )  # fmt: skip
    return out


def _mixed_table(mixed: Mapping[str, MixedResults]) -> Table:
    out = Table(
        title=f"small images on {SMALL_CONNECTIONS} connections, large ones on {LARGE_CONNECTIONS}",
        title_justify="left",
    )
    out.add_column("server")
    for heading in (
        "p99 ms alone", "p99 ms", "ratio", "small/s alone", "small/s", "large/s alone", "large/s", "ratio", "errors",
    ):  # fmt: skip
        out.add_column(heading, justify="right")
    for row in mixed_rows(mixed):
        out.add_row(
            row.server, _number(row.p99_alone), _number(row.p99), _times(row.p99_ratio),
            _number(row.small_alone), _number(row.small), _number(row.large_alone), _number(row.large),
            _times(row.large_ratio), str(row.errors),
        )  # fmt: skip
    return out


def _open_loop_table(results: Results) -> Table:
    deadline = results.open_loop[0].deadline
    out = Table(title=f"tenfold, open loop: responses with status 200 within {deadline:g} s", title_justify="left")
    for heading in ("offered/s", "goodput/s", "p50 ms", "p99 ms", "200", "503", "504", "lost"):
        out.add_column(heading, justify="right")
    for outcome in results.open_loop:
        out.add_row(
            _number(outcome.offered), _number(outcome.goodput), _number(outcome.p50), _number(outcome.p99),
            *(str(outcome.statuses.get(status, 0)) for status in (200, 503, 504)), str(outcome.lost),
        )  # fmt: skip
    return out


def summary(results: Results, *, weights: Path, rounds: int, seconds: int, failures: Sequence[str]) -> dict[str, Any]:
    """All results for JSON: rates per second, latencies in milliseconds."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": versions(),
        "weights": weights.name,
        "rounds": rounds,
        "seconds": seconds,
        "missing": results.missing,
        "failures": list(failures),
        "ceilings": [asdict(each) for each in results.ceilings],
        "rows": [asdict(row) for row in rows_of(results)],
        "loads": [
            {**asdict(case), "server": name, "rounds": [asdict(load) for load in loads]}
            for case, by_server in results.loads.items()
            for name, loads in by_server.items()
        ],
        "tensors": [asdict(row) for row in tensor_rows(results.tensors)] if results.tensors else [],
        "mixed": [asdict(row) for row in mixed_rows(results.mixed)],
        "open_loop": [outcome.summary() for outcome in results.open_loop],
    }


def _number(value: float | None) -> str:
    """At least three significant digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} x"
