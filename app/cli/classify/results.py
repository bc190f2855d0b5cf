"""Results of `tenfold classify`, and their formats: CSV, JSON lines, and a table for terminals."""

import csv
import errno
import io
import json
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

Format = Literal["csv", "jsonl", "table"]

_FORMATS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""Extension of the output's name -> format."""


class CommandError(Exception):
    """The command cannot continue. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Result:
    """The prediction for one file, or the reason why there is none.

    Attributes:
        path: the file, as it was named.
        prediction: an element of `results` in a response of /predict, without `filename`; empty if there is an error.
        model: name and version of the model.
        error: a sentence.
    """

    path: str
    prediction: Mapping[str, Any]
    model: Mapping[str, str] | None = None
    error: str | None = None


class Writer(Protocol):
    """Formats results. The first call's lines begin with the format's header, even if there are no results."""

    def lines(self, results: Iterable[Result]) -> Iterator[str]: ...

    def resume(self, lines: Iterable[str]) -> Iterator[str]:
        """Read the results of an interrupted run, to continue after them without another header.

        Args:
            lines: of the file, with their line breaks. They are read as far as needed for the next result.

        Yields:
            The path of each complete result.

        Raises:
            CommandError: the results have other columns.
        """
        ...


class CsvWriter:
    """A row per file. Label and probability of rank k are in `label_k` and `probability_k` if k > 1."""

    def __init__(self, top_k: int) -> None:
        other_ranks = [f"{name}_{rank}" for rank in range(2, top_k + 1) for name in ("label", "probability")]
        details = ("verdict", "accepted", "in_distribution", "views", "width", "height", "warnings")
        self._names = ["path", "label", "probability", *other_ranks, *details, "error"]
        self._header_written = False

    def lines(self, results: Iterable[Result]) -> Iterator[str]:
        text = io.StringIO()
        rows = csv.DictWriter(text, self._names, restval="", lineterminator="\n")
        if not self._header_written:
            self._header_written = True
            rows.writeheader()
        rows.writerows(map(self._row, results))
        yield text.getvalue()

    def resume(self, lines: Iterable[str]) -> Iterator[str]:
        rows = csv.reader(line for line in lines if line.endswith("\n"))
        if next(rows, self._names) != self._names:
            raise CommandError("it has other columns")
        for row in rows:
            if len(row) != len(self._names):  # cut in the middle
                return
            self._header_written = True
            yield row[0]

    def _row(self, result: Result) -> dict[str, object]:
        prediction = result.prediction
        if not prediction:
            return {"path": utf8_path(result.path), "error": result.error}
        ranking = [value for ranked in prediction["top_k"] for value in (ranked["label"], ranked["probability"])]
        accepted, warnings = str(prediction["accepted"]).lower(), "; ".join(prediction["warnings"])
        details = (prediction[name] for name in ("in_distribution", "views", "width", "height"))
        values = (utf8_path(result.path), *ranking, prediction["verdict"], accepted, *details, warnings, "")
        return dict(zip(self._names, values, strict=True))


class JsonLinesWriter:
    """An object per file: the element of the service's response with `path` and `model`, or `path` and `error`."""

    def lines(self, results: Iterable[Result]) -> Iterator[str]:
        for result in results:
            content = {"path": utf8_path(result.path), **result.prediction}
            if result.model:
                content["model"] = result.model
            yield json.dumps({**content, "error": result.error}) + "\n"

    def resume(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)["path"]
            except (KeyError, TypeError, ValueError) as error:
                raise CommandError("it has other contents") from error


class TableWriter:
    """Columns of fixed width, so that each line is written at once. The path is last, since it may be of any length."""

    def __init__(self, top_k: int) -> None:
        self._header_written = False
        self._classes = top_k

    def lines(self, results: Iterable[Result]) -> Iterator[str]:
        if not self._header_written:
            self._header_written = True
            yield f"{'class':<{21 * self._classes - 2}}  {'verdict':<9}  file\n"
        for result in results:
            path = escape_unprintable(result.path)
            if result.error is not None:
                error = escape_unprintable(result.error)
                yield f"{'-':<{21 * self._classes - 2}}  {'-':<9}  {path}: {error}\n"
                continue
            ranking = "  ".join(
                f"{ranked['label']:<10} {ranked['probability']:>8.2%}" for ranked in result.prediction["top_k"]
            )
            yield f"{ranking}  {result.prediction['verdict']:<9}  {path}\n"

    def resume(self, lines: Iterable[str]) -> Iterator[str]:  # noqa: ARG002
        return iter(())  # a table is for reading: it begins again


def format_of(output: Path) -> Format:
    """The format for a file: by its extension, CSV without one.

    Raises:
        CommandError: the extension is that of another format.
    """
    extension = output.suffix.lower()
    if not extension:
        return "csv"
    if extension not in _FORMATS:
        raise CommandError(
            f"{output}: the results are written as CSV (.csv) or JSON lines (.jsonl, .ndjson), not as {extension}: "
            "choose another name, or give --format too"
        )
    return _FORMATS[extension]


def make_writer(output_format: Format, top_k: int) -> Writer:
    """The writer for a format."""
    if output_format == "jsonl":
        return JsonLinesWriter()
    return CsvWriter(top_k) if output_format == "csv" else TableWriter(top_k)


def utf8_path(path: str) -> str:
    """The path with each byte that is not valid UTF-8 as %XX, so that CSV and JSON are valid."""
    return re.sub("[\udc80-\udcff]", lambda found: f"%{ord(found[0]) - 0xDC00:02X}", path)


def plural(count: int, noun: str) -> str:
    """Such as "1 file" or "1,000 files"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def escape_unprintable(text: str) -> str:
    """The text with control characters and undecodable bytes escaped, so that it cannot control a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text)


class Output:
    """Destination of the results.

    Args:
        path: a file, or None for standard output. Lines are written to path.partial, which replaces it at the end.
            So `path` is either complete or unchanged. What was written is kept if the run is interrupted, and
            `resume` continues it.

    Attributes:
        partial: the path of that file, if there is one.

    Raises:
        CommandError: it cannot be written. Each method may raise this too.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.partial = None if path is None or _is_special(path) else path.with_name(f"{path.name}.partial")
        file = self.partial or path
        with self._convert_errors():
            if file is None:
                self._file: TextIO = sys.stdout
                sys.stdout.reconfigure(errors="surrogateescape", newline="\n")  # type: ignore[union-attr]
            else:
                mode: Literal["a", "w"] = "a" if self.partial else "w"
                self._file = file.open(mode, encoding="utf-8", errors="surrogateescape", newline="\n")

    def resume(self, writer: Writer, paths: Iterator[str]) -> int:
        """Keep the results of an interrupted run, and take their paths from `paths`.

        Returns:
            The number of results that are kept.

        Raises:
            CommandError: they are results of other files or with other columns.
        """
        if self.partial is None:
            return 0
        count = size = read = 0

        def lines() -> Iterator[str]:
            nonlocal read
            for line in file:
                read += len(line.encode("utf-8", "surrogateescape"))
                yield line

        with (
            self._convert_errors(),
            self.partial.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file,
        ):
            try:
                for path in writer.resume(lines()):
                    if path != next(paths, None):
                        raise CommandError("it has results of other files")
                    count, size = count + 1, read
            except CommandError as error:
                self._file.close()
                raise CommandError(
                    f"{self.partial} cannot be continued, because {error}: remove it, or give the arguments of that run"
                ) from error
            self._file.truncate(size)
        return count

    def write(self, lines: Iterable[str]) -> None:
        """Write lines and flush them.

        Raises:
            BrokenPipeError: the reader of standard output has closed it.
        """
        with self._convert_errors():
            self._file.writelines(lines)
            self._file.flush()

    def finish(self) -> None:
        """Close the file and move it to its path."""
        with self._convert_errors():
            if self._path is not None:
                self._file.close()
                if self.partial:
                    self.partial.replace(self._path)

    def abandon(self) -> Path | None:
        """Close the file. A partial file is kept, unless it is empty.

        Returns:
            The file that was kept, if there is one.
        """
        if self._path is not None:
            with suppress(OSError):  # what could not be flushed before
                self._file.close()
        if self.partial is None or not self.partial.exists():
            return None
        if self.partial.stat().st_size:
            return self.partial
        self.partial.unlink()
        return None

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            where = self._path or "the results"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "free some space or choose another --output" if full else "choose another --output"
            raise CommandError(f"cannot write {where} ({error.strerror}): {remedy}") from error


def _is_special(path: Path) -> bool:
    """Whether it exists and is no regular file: a pipe, a terminal, /dev/null."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
