import contextlib
import io
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, TextIO

import pytest

from app.telemetry.logs import LogFormat, logging_to_stderr

logger = logging.getLogger("tests.logs")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(
    write: Callable[[], None], log_format: LogFormat, *, level: str = "info", stream: io.StringIO | None = None
) -> str:
    """What standard error receives from `write`."""
    stream = stream or io.StringIO()
    before = list(logging.getLogger().handlers)
    with contextlib.redirect_stderr(stream), logging_to_stderr(level, log_format):
        write()
    assert logging.getLogger().handlers == before
    return stream.getvalue()


def fail() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it failed")


def test_each_record_is_a_line_of_json() -> None:
    def write() -> None:
        logger.info('%s "and" %d\nmore', "é", 7, extra={"fields": {"status": 200, "stages": {"decode": 1.5}}})
        fail()

    lines = logged(write, "json").splitlines()
    assert len(lines) == 2
    first, second = (json.loads(line) for line in lines)
    when = datetime.fromisoformat(first.pop("time"))
    assert when.utcoffset() is not None
    assert abs((datetime.now(when.tzinfo) - when).total_seconds()) < 60
    expected: dict[str, Any] = {"level": "info", "logger": "tests.logs", "message": 'é "and" 7\nmore'}
    assert first == {**expected, "status": 200, "stages": {"decode": 1.5}}
    assert second["level"] == "error"
    assert second["exception"].startswith("Traceback")
    assert second["exception"].endswith("ValueError: two\nlines")


def test_text_is_for_people() -> None:
    text = logged(lambda: logger.warning("message %d", 1, extra={"fields": {"a": 1}}), "text")
    assert text.endswith(" WARNING message 1\n")
    assert "Traceback" in logged(fail, "text")


def test_auto_is_text_on_a_terminal_only() -> None:
    def write() -> None:
        logger.info("message")

    assert logged(write, "auto", stream=Terminal()).endswith(" INFO message\n")
    assert json.loads(logged(write, "auto"))["message"] == "message"


def test_records_below_the_level_are_left_out() -> None:
    def write() -> None:
        logger.info("no")
        logger.warning("yes")

    lines = logged(write, "json", level="warning").splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["yes"]


def test_all_records_are_written_at_the_end() -> None:
    def write() -> None:
        for number in range(5000):
            logger.info("%d", number)

    lines = logged(write, "json").splitlines()
    assert [json.loads(line)["message"] for line in lines] == [str(number) for number in range(5000)]


def test_a_record_that_cannot_be_formatted_is_reported_and_the_next_one_is_written() -> None:
    class Unprintable:
        def __str__(self) -> str:
            raise ValueError("no text")

    def write() -> None:
        logger.info("first", extra={"fields": {"it": Unprintable()}})
        logger.info("second")

    text = logged(write, "json")
    assert "--- Logging error ---" in text
    assert json.loads(text.splitlines()[-1])["message"] == "second"


def test_records_are_written_as_they_come() -> None:
    stream = io.StringIO()

    def write() -> None:
        logger.info("message")
        ends = time.monotonic() + 10
        while not stream.getvalue():
            assert time.monotonic() < ends, "nothing is written before the end"
            time.sleep(0.01)

    logged(write, "json", stream=stream)


@pytest.fixture
def pipe() -> Iterator[tuple[TextIO, TextIO]]:
    """A pipe: what reads it, and what writes to it."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, encoding="utf-8") as reader, os.fdopen(write_end, "w", encoding="utf-8") as writer:
        yield reader, writer


def test_records_are_dropped_while_the_stream_blocks_and_their_number_is_logged(pipe: tuple[TextIO, TextIO]) -> None:
    count = 30_000
    lines: list[str] = []
    reader, writer = pipe
    reading = threading.Thread(target=lambda: lines.extend(reader))
    with contextlib.redirect_stderr(writer), logging_to_stderr("info", "json"):
        for number in range(count):
            logger.info("%d", number)
        reading.start()
    writer.close()
    reading.join(60)
    entries = [json.loads(line) for line in lines]
    dropped = sum(entry.get("dropped", 0) for entry in entries)
    written = [int(entry["message"]) for entry in entries if "dropped" not in entry]
    assert dropped >= count - 2 * 10_000, "one queue that is being written and one that waits"
    assert len(written) + dropped == count
    assert written == sorted(set(written))
    warnings = [entry for entry in entries if "dropped" in entry]
    assert warnings[0]["level"] == "warning"
    assert (
        warnings[0]["message"]
        == f"{warnings[0]['dropped']} log records were dropped because the log stream was blocked"
    )


def test_a_stream_that_stays_blocked_does_not_keep_the_process_from_ending(pipe: tuple[TextIO, TextIO]) -> None:
    reader, writer = pipe
    began = time.monotonic()
    with contextlib.redirect_stderr(writer), logging_to_stderr("info", "json"):
        for _ in range(2000):
            logger.info("x" * 100)
    assert time.monotonic() - began < 30
    reading = threading.Thread(target=reader.read)  # for the writing thread to end
    reading.start()
    writer.close()
    reading.join(60)
