"""Log lines, written by a thread of their own so that no request waits for the terminal or the disk."""

import json
import logging
import queue
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Literal

LogFormat = Literal["auto", "json", "text"]


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


class _Handler(QueueHandler):
    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """As it is: the listener formats it. The base class would do so here, in the request's time."""
        return record


@contextmanager
def logging_to_stderr(level: str, log_format: LogFormat) -> Iterator[None]:
    """Log to stderr, and have written all of it at the end.

    Args:
        level: the least that is logged.
        log_format: auto is text on a terminal and JSON elsewhere.
    """
    stream = logging.StreamHandler(sys.stderr)
    text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    stream.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s") if text else JsonFormatter())
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = QueueListener(records, stream)
    root = logging.getLogger()
    root.setLevel(level.upper())
    handler = _Handler(records)
    root.addHandler(handler)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        listener.stop()
