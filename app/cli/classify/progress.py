"""Progress bar, messages and summary on standard error."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from app.cli.classify.paths import Skipped
from app.cli.classify.results import Result, escape_unprintable

if TYPE_CHECKING:
    from rich.progress import Progress

# Failed files that the summary lists; it counts the others.
_LISTED = 100


class Report:
    """Counts results and shows progress.

    Args:
        count: returns the total number of files, if it can be known. It is called in a thread of its own.
        skipped: files of folders that are no images.
        bar: whether to draw a progress bar.

    Attributes:
        classified: number of files with a prediction.
        failed: number of files with an error.
    """

    def __init__(self, count: Callable[[], int] | None, skipped: Skipped, *, bar: bool) -> None:
        self.classified = self.failed = 0
        self._verdicts = {"accepted": 0, "uncertain": 0, "other": 0}
        self._count = count
        self._skipped = skipped
        self._failures: list[str] = []
        self._model: str | None = None
        self._started = time.monotonic()
        self._bar = _start_bar(count) if bar else None

    def add(self, results: Sequence[Result]) -> None:
        """Count results and update the bar."""
        for result in results:
            if result.error is None:
                self.classified += 1
                self._verdicts[result.prediction["verdict"]] += 1
                if result.model and self._model is None:
                    self._model = f"{result.model['name']} {result.model['version']}"
            else:
                self.failed += 1
                if len(self._failures) < _LISTED:
                    self._failures.append(f"{escape_unprintable(result.path)}: {escape_unprintable(result.error)}")
        if self._bar:
            done = self.classified + self.failed
            self._bar.update(self._bar.task_ids[0], completed=done, rate=done / (time.monotonic() - self._started))

    def print(self, message: str) -> None:
        """Print a message at once, above the bar if there is one."""
        if self._bar:
            self._bar.console.print(escape_unprintable(message), markup=False, highlight=False)
        else:
            print(escape_unprintable(message), file=sys.stderr, flush=True)

    def stop_bar(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def print_summary(self, *, complete: bool) -> None:
        """List the failed files and count the skipped ones. If a file failed or was not reached, or on a terminal,
        print the counts and the rate too.

        Args:
            complete: whether all files have a result.
        """
        if self.failed:
            print("failed:", file=sys.stderr)
            for line in self._failures:
                print(f"  {line}", file=sys.stderr)
            if self.failed > len(self._failures):
                print(f"  and {self.failed - len(self._failures):,} more", file=sys.stderr)
        if skipped := str(self._skipped):
            print(f"skipped in folders, because they have no image extension: {skipped}", file=sys.stderr)
        if self.failed or not complete or sys.stderr.isatty():
            done = self.classified + self.failed
            total = done if complete or self._count is None else self._count()
            seconds = time.monotonic() - self._started
            by = f" by {self._model}" if self._model else ""
            print(
                f"{self.classified:,} of {total:,} classified{by} in {seconds:.1f} s, "
                f"{self.classified / seconds:.0f}/s: "
                + ", ".join(f"{count:,} {verdict}" for verdict, count in self._verdicts.items()),
                file=sys.stderr,
            )


def _start_bar(count: Callable[[], int] | None) -> "Progress":
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
