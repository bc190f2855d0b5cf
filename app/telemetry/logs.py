"""Log lines, written by a thread of their own so that no request waits for a terminal, a pipe or a disk."""

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

# Seconds between two writes.
_INTERVAL = 0.05
# Records that wait to be written; about 1.5 KB each.
_MAX_RECORDS = 10_000
# Seconds to write what is left at the end.
_CLOSE_TIMEOUT = 5.0


class JsonFormatter(logging.Formatter):
    """A record as a line of JSON: time (UTC), level, logger, message, and the fields of `extra={"fields": {...}}`."""

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
    """Queues records; a thread writes them 20 times a second.

    A thread that wakes for each record, as in logging.handlers.QueueListener, competes with the requests for the
    interpreter lock. While the stream blocks the queue grows to `_MAX_RECORDS`; further records are dropped, and their
    number is logged once the stream accepts data again.

    Args:
        stream: written to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._records: deque[logging.LogRecord] = deque()
        self._dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        # logging.Handler.handle holds self.lock here.
        if len(self._records) < _MAX_RECORDS:
            self._records.append(record)
        else:
            self._dropped += 1

    def close(self) -> None:
        """Write what is left, unless the stream blocks."""
        self._closing.set()
        self._thread.join(_CLOSE_TIMEOUT)
        super().close()

    def _run(self) -> None:
        while not self._closing.wait(_INTERVAL):
            self._write()
        self._write()

    def _write(self) -> None:
        lines = [line for record in self._take() if (line := self._line(record))]
        if lines:
            with suppress(OSError, ValueError):  # the other end of the stream is closed: there is nowhere to report it
                self._stream.write("".join(lines))
                self._stream.flush()

    def _take(self) -> list[logging.LogRecord]:
        """Empty the queue. If records were dropped after them, a record that says so is the last."""
        self.acquire()
        try:
            records, dropped = list(self._records), self._dropped
            self._records.clear()
            self._dropped = 0
        finally:
            self.release()
        if dropped:
            message = f"{dropped} log records were dropped because the log stream was blocked"
            fields = {"name": "tenfold", "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
            records.append(logging.makeLogRecord({**fields, "fields": {"dropped": dropped}}))
        return records

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return ""


@contextmanager
def logging_to_stderr(level: str, log_format: LogFormat) -> Iterator[None]:
    """Log to standard error, and write all records before the end.

    Args:
        level: lowest level that is logged.
        log_format: "auto" is text on a terminal and JSON elsewhere.
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
