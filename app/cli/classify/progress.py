"""What people see on standard error while files are classified, and at the end."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from app.cli.classify.results import Result, shown

if TYPE_CHECKING:
    from rich.progress import Progress

# Of the files without an answer so many are told at the end.
_LISTED = 100


class Report:
    """Counts the results.

    Args:
        count: how many there will be, if that can be known; called in a thread of its own.
        bar: whether to draw a bar.

    Attributes:
        answered: files with an answer.
        failed: files without.
    """

    def __init__(self, count: Callable[[], int] | None, *, bar: bool) -> None:
        self.answered = self.failed = 0
        self._listed: list[str] = []
        self._model: str | None = None
        self._began = time.monotonic()
        self._bar = _begun(count) if bar else None

    def add(self, results: Sequence[Result]) -> None:
        """Count results in."""
        for result in results:
            if result.error is None:
                self.answered += 1
                if result.model and self._model is None:
                    self._model = f"{result.model['name']} {result.model['version']}"
            else:
                self.failed += 1
                if len(self._listed) < _LISTED:
                    self._listed.append(f"{shown(result.path)}: {shown(result.error)}")
        if self._bar:
            done = self.answered + self.failed
            self._bar.update(self._bar.task_ids[0], completed=done, rate=done / (time.monotonic() - self._began))

    def say(self, text: str) -> None:
        """Tell something at once."""
        if self._bar:
            self._bar.console.print(shown(text), markup=False, highlight=False)
        else:
            print(shown(text), file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def summary(self) -> None:
        """Tell the files that were not answered, and on a terminal how many were."""
        if self.failed:
            print("not answered:", file=sys.stderr)
            for line in self._listed:
                print(f"  {line}", file=sys.stderr)
            if self.failed > len(self._listed):
                print(f"  and {self.failed - len(self._listed):,} more", file=sys.stderr)
        if self.failed or sys.stderr.isatty():
            seconds = time.monotonic() - self._began
            by = f" by {self._model}" if self._model else ""
            print(
                f"{self.answered:,} of {self.answered + self.failed:,} answered{by} in {seconds:.1f} s, "
                f"{self.answered / seconds:.0f}/s",
                file=sys.stderr,
            )


def _begun(count: Callable[[], int] | None) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.0f}/s"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=4,
    )
    task = bar.add_task("", total=None, rate=0.0)
    if count:
        threading.Thread(target=lambda: bar.update(task, total=count()), name="count", daemon=True).start()
    bar.start()
    return bar
