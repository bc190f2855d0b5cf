"""Log lines, written by a thread of their own so that no request waits for the terminal or the disk."""

import json
import logging
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Literal, TextIO

LogFormat = Literal["auto", "json", "text"]

_WRITE_EVERY = 0.05


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON: time (UTC), level, logger, message, and what `extra={"fields": ...}` adds."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


class _Writer(logging.Handler):
    """Keeps records, and a thread writes them some times a second.

    A thread woken for each of them, as by logging's own QueueListener, fights the requests for the interpreter.

    Args:
        stream: that is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._records: deque[logging.LogRecord] = deque()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def close(self) -> None:
        """Write what is left."""
        self._ended.set()
        self._thread.join()
        super().close()

    def _run(self) -> None:
        while not self._ended.wait(_WRITE_EVERY):
            self._write()
        self._write()

    def _write(self) -> None:
        lines = []
        while self._records:
            record = self._records.popleft()
            try:
                lines.append(self.format(record) + "\n")
            except Exception:
                self.handleError(record)
        if lines:
            with suppress(OSError, ValueError):  # nobody reads the stream any more: there is nowhere to say so
                self._stream.write("".join(lines))
                self._stream.flush()


@contextmanager
def logging_to_stderr(level: str, log_format: LogFormat) -> Iterator[None]:
    """Log to stderr, and have written all of it at the end.

    Args:
        level: the least that is logged.
        log_format: auto is text on a terminal and JSON elsewhere.
    """
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    writer = _Writer(sys.stderr)
    writer.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s") if text else JsonFormatter())
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.addHandler(writer)
    try:
        yield
    finally:
        root.removeHandler(writer)
        writer.close()
