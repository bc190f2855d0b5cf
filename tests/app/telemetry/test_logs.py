import io
import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from app.telemetry.logs import LogFormat, logging_to_stderr

logger = logging.getLogger("tests.logs")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def logged(
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[], None],
    log_format: LogFormat,
    *,
    level: str = "info",
    stream: io.StringIO | None = None,
) -> str:
    stream = stream or io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    before = list(logging.getLogger().handlers)
    with logging_to_stderr(level, log_format):
        write()
    assert logging.getLogger().handlers == before
    return stream.getvalue()


def fails() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logger.exception("it failed")


def test_each_record_is_a_line_of_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        logger.info('%s "and" %d\nmore', "é", 7, extra={"fields": {"status": 200, "stages": {"decode": 1.5}}})
        fails()

    lines = logged(monkeypatch, write, "json").splitlines()
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


def test_text_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    text = logged(monkeypatch, lambda: logger.warning("so %d", 1, extra={"fields": {"a": 1}}), "text")
    assert text.endswith(" WARNING so 1\n")
    assert "Traceback" in logged(monkeypatch, fails, "text")


def test_auto_is_text_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        logger.info("so")

    assert logged(monkeypatch, write, "auto", stream=Terminal()).endswith(" INFO so\n")
    assert json.loads(logged(monkeypatch, write, "auto"))["message"] == "so"


def test_less_than_the_level_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        logger.info("no")
        logger.warning("yes")

    lines = logged(monkeypatch, write, "json", level="warning").splitlines()
    assert [json.loads(line)["message"] for line in lines] == ["yes"]


def test_all_is_written_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        for number in range(5000):
            logger.info("%d", number)

    lines = logged(monkeypatch, write, "json").splitlines()
    assert [json.loads(line)["message"] for line in lines] == [str(number) for number in range(5000)]


def test_a_line_that_cannot_be_made_is_told_of_and_the_next_one_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shy:
        def __str__(self) -> str:
            raise ValueError("nobody knows what I am")

    def write() -> None:
        logger.info("who", extra={"fields": {"it": Shy()}})
        logger.info("so")

    text = logged(monkeypatch, write, "json")
    assert "--- Logging error ---" in text
    assert json.loads(text.splitlines()[-1])["message"] == "so"


def test_lines_are_written_while_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()

    def write() -> None:
        logger.info("so")
        ends = time.monotonic() + 10
        while not stream.getvalue():
            assert time.monotonic() < ends, "nothing is written before the end"
            time.sleep(0.01)

    logged(monkeypatch, write, "json", stream=stream)
