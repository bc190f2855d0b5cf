"""Chart of the simulation: p99 and requests without a result against the number of replicas."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.scale.simulation import Outcome


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a chart of the outcomes with 1, 2, ... replicas.

    Raises:
        OSError: the file cannot be written.
    """
    counts = range(1, len(outcomes) + 1)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7.0, 2.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(counts, [each.p99 for each in outcomes], "o-", color="#0072b2", label="p99")
        left.plot(counts, [each.p50 for each in outcomes], "o--", color="#56b4e9", label="p50")
        left.set_ylabel("latency in milliseconds")
        left.legend(frameon=False)
        right.bar(counts, [100 * each.lost_share for each in outcomes], color="#d55e00")
        right.set_ylabel("refused or late, % of requests")
        for axes in (left, right):
            axes.set_xlabel("replicas")
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
