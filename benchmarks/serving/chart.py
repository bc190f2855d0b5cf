"""Chart of request rates and latencies by load and server."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.serving.report import Row, rows_of
from benchmarks.serving.rounds import Results
from benchmarks.serving.servers import SERVERS

# Without `front`, which does not classify and is so fast that the other bars would be too short to compare.
_NAMES = [server.name for server in SERVERS if server.classifies]
# The palette of Okabe and Ito, which colour-blind readers can distinguish.
_COLOURS = dict(zip(_NAMES, ["#999999", "#56b4e9", "#e69f00", "#009e73", "#d55e00"], strict=True))
_TITLES = {"png": "PNG of 32 x 32", "jpeg": "JPEG of 12 megapixels"}


def draw(results: Results, path: Path) -> None:
    """Write a chart with a column per kind of request: rates above, latencies below.

    Raises:
        OSError: the file cannot be written.
    """
    rows = [row for row in rows_of(results) if row.server in _COLOURS]
    kinds = list(dict.fromkeys((row.case.payload, row.case.encoding) for row in rows))
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(5.0, 4.0 * len(kinds)), 6.5), layout="constrained")
        axes = figure.subplots(2, max(1, len(kinds)), squeeze=False)
        for (payload, encoding), upper, lower in zip(kinds, axes[0], axes[1], strict=False):
            selected = [row for row in rows if (row.case.payload, row.case.encoding) == (payload, encoding)]
            _draw_rates(upper, selected)
            upper.set_title(f"{_TITLES[payload]}, {encoding}")
            _draw_latencies(lower, selected)
        axes[0][0].set_ylabel("successful requests per second")
        axes[1][0].set_ylabel("milliseconds, p50 (bar) to p99 (whisker)")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(_NAMES), frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def _draw_rates(axes: Axes, rows: Sequence[Row]) -> None:
    for x, row in _positions(rows):
        bar = axes.bar(x, row.rate, _width(rows), color=_COLOURS[row.server], label=_label(axes, row.server))
        axes.bar_label(bar, fmt=f"{row.rate:.3g}" if row.rate < 100 else f"{row.rate:.0f}", fontsize=7, rotation=90,
                       padding=2)  # fmt: skip
    axes.margins(y=0.15)
    _label_groups(axes, rows)


def _draw_latencies(axes: Axes, rows: Sequence[Row]) -> None:
    for x, row in _positions(rows):
        if row.p50 is not None and row.p99 is not None:
            axes.bar(x, row.p50, _width(rows), color=_COLOURS[row.server])
            axes.plot([x, x], [row.p50, row.p99], color="black", linewidth=1, marker="_", markersize=5)
    axes.set_yscale("log")
    _label_groups(axes, rows)


def _positions(rows: Sequence[Row]) -> list[tuple[float, Row]]:
    """The x coordinate of each bar: grouped by connections, and in each group in the order of the servers."""
    names, groups = _servers(rows), _groups(rows)
    middle = (len(names) - 1) / 2
    return [
        (groups.index(row.case.connections) + (names.index(row.server) - middle) * _width(rows), row) for row in rows
    ]


def _width(rows: Sequence[Row]) -> float:
    return 0.85 / len(_servers(rows))


def _servers(rows: Sequence[Row]) -> list[str]:
    return [name for name in _NAMES if any(row.server == name for row in rows)]


def _groups(rows: Sequence[Row]) -> list[int]:
    return sorted({row.case.connections for row in rows})


def _label_groups(axes: Axes, rows: Sequence[Row]) -> None:
    groups = _groups(rows)
    axes.set_xticks(range(len(groups)), [f"{count} connections" for count in groups])


def _label(axes: Axes, name: str) -> str:
    """A label that appears only once in the legend."""
    return "_" if name in axes.get_legend_handles_labels()[1] else name
