"""What is said of each file, and how: CSV, lines of JSON, or a table for people."""

import csv
import io
import json
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

Format = Literal["csv", "jsonl", "table"]


class Unusable(Exception):
    """Nothing more can be done; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Result:
    """Of one file: an answer, or why there is none.

    Attributes:
        path: as it was named.
        answer: an element of the service's `results`, without its filename; empty if there is an error.
        model: name and version of what answered.
        error: a sentence.
    """

    path: str
    answer: Mapping[str, Any]
    model: Mapping[str, str] | None = None
    error: str | None = None


class Writer(Protocol):
    """Makes lines of results. What stands before the first line is made with it, or by `lines` of none."""

    def lines(self, results: Iterable[Result]) -> Iterator[str]: ...


class Csv:
    """A row for each file; label and probability of the k-th class, k > 1, in `label_k` and `probability_k`."""

    def __init__(self, top_k: int) -> None:
        further = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
        details = ("accepted", "in_distribution", "views", "width", "height", "warnings")
        self._names = ["path", "label", "probability", *further, *details, "error"]
        self._begun = False

    def lines(self, results: Iterable[Result]) -> Iterator[str]:
        text = io.StringIO()
        rows = csv.DictWriter(text, self._names, restval="", lineterminator="\n")
        if not self._begun:
            self._begun = True
            rows.writeheader()
        rows.writerows(map(self._row, results))
        yield text.getvalue()

    def _row(self, result: Result) -> dict[str, object]:
        answer = result.answer
        if not answer:
            return {"path": result.path, "error": result.error}
        ranking = [value for ranked in answer["top_k"] for value in (ranked["label"], ranked["probability"])]
        accepted, warnings = str(answer["accepted"]).lower(), "; ".join(answer["warnings"])
        details = (answer[name] for name in ("in_distribution", "views", "width", "height"))
        return dict(zip(self._names, (result.path, *ranking, accepted, *details, warnings, ""), strict=True))


class JsonLines:
    """An object for each file: the service's answer with `path` and `model`, or `path` and `error`."""

    def lines(self, results: Iterable[Result]) -> Iterator[str]:
        for result in results:
            said = {"path": result.path, **result.answer}
            if result.model:
                said["model"] = result.model
            yield json.dumps({**said, "error": result.error}) + "\n"


class Table:
    """Columns for people, made line by line: the path comes last, because it may be of any length."""

    def __init__(self, top_k: int) -> None:
        self._begun = False
        self._classes = top_k

    def lines(self, results: Iterable[Result]) -> Iterator[str]:
        if not self._begun:
            self._begun = True
            yield f"{'class':<{21 * self._classes - 2}}  {'accepted':<8}  picture\n"
        for result in results:
            if result.error is not None:
                yield f"{'-':<{21 * self._classes - 2}}  {'-':<8}  {shown(result.path)}: {shown(result.error)}\n"
                continue
            ranking = "  ".join(
                f"{ranked['label']:<10} {ranked['probability']:>8.2%}" for ranked in result.answer["top_k"]
            )
            accepted = "yes" if result.answer["accepted"] else "no"
            yield f"{ranking}  {accepted:<8}  {shown(result.path)}\n"


def writer_of(kind: Format, top_k: int) -> Writer:
    """The writer of a format."""
    if kind == "jsonl":
        return JsonLines()
    return Csv(top_k) if kind == "csv" else Table(top_k)


def shown(text: str) -> str:
    """A path for people: what would move their cursor, or is no text, is escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text)


class Output:
    """Where the results go.

    Args:
        path: of a file, or none for standard output. What is written goes to a file beside it, which takes its
            place at the end: so `path` is whole or as it was, and if the run is broken off, what was answered is kept.

    Attributes:
        partial: the file beside it, if there is one.

    Raises:
        Unusable: it cannot be written; each of the methods may find that out too.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.partial = None if path is None or _is_special(path) else path.with_name(f"{path.name}.partial")
        file = self.partial or path
        with self._told():
            if file is None:
                self._file: TextIO = sys.stdout
                sys.stdout.reconfigure(errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
            else:
                self._file = file.open("w", encoding="utf-8", errors="surrogateescape", newline="\n")

    def write(self, lines: Iterable[str]) -> None:
        """Write, and let whoever reads have it at once.

        Raises:
            BrokenPipeError: nobody reads any more.
        """
        with self._told():
            self._file.writelines(lines)
            self._file.flush()

    def finish(self) -> None:
        """Put the file in its place."""
        with self._told():
            if self._path is not None:
                self._file.close()
                if self.partial:
                    self.partial.replace(self._path)

    def abandon(self) -> Path | None:
        """Leave it as it is.

        Returns:
            The file that holds what was written, if there is one.
        """
        if self.partial is None or not self.partial.exists():
            return None
        if self.partial.stat().st_size:
            return self.partial
        self.partial.unlink()
        return None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            where = self._path or "the results"
            raise Unusable(f"cannot write {where} ({error.strerror}): make room or choose another --output") from error


def _is_special(path: Path) -> bool:
    """Whether it is there and no file: a pipe, a terminal, /dev/null."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
