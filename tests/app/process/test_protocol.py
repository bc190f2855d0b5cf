"""Slow senders, over bare connections."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.app.fakes import picture
from tests.app.running import Running, eventually, serving

TIMEOUT = 0.5
# The protocol grants a second more.
PATIENCE = TIMEOUT + 1.0
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(picture())


@pytest.fixture(scope="module")
def impatient() -> Iterator[Running]:
    with serving(timeout=TIMEOUT) as service:
        yield service


def dripped(service: Running, head: bytes, drip: Callable[[int], bytes]) -> tuple[bytes, float]:
    """Send a head, then a piece every 50 ms; what comes back until the service hangs up, and after how many seconds."""
    answer = b""
    with service.connect() as connection:
        began = time.monotonic()
        connection.sendall(head)
        connection.settimeout(0.05)
        for step in range(200):
            try:
                received = connection.recv(65536)
            except TimeoutError:
                try:
                    connection.sendall(drip(step))
                except OSError:
                    break
            except OSError:
                break
            else:
                if not received:
                    break
                answer += received
        else:
            raise AssertionError("the service never hung up")
        return answer, time.monotonic() - began


def test_who_says_nothing_is_hung_up_on(impatient: Running) -> None:
    answer, seconds = dripped(impatient, b"", lambda _: b"")
    assert answer == b""
    assert PATIENCE - 0.1 < seconds < PATIENCE + 5


def test_a_head_that_drips_in_is_hung_up_on(impatient: Running) -> None:
    answer, seconds = dripped(impatient, b"GET /livez HTTP/1.1\r\n", lambda step: b"X-%d: 1\r\n" % step)
    assert answer == b""
    assert PATIENCE - 0.1 < seconds < PATIENCE + 5


def test_a_second_head_that_drips_in_is_hung_up_on(impatient: Running) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    answer, _ = dripped(impatient, whole + b"GET /livez HTTP/1.1\r\n", lambda step: b"X-%d: 1\r\n" % step)
    assert answer.count(b"HTTP/1.1 200 ") == 1


def test_a_body_that_drips_in_is_told_so_at_the_deadline_and_hung_up_on(impatient: Running) -> None:
    answer, seconds = dripped(impatient, HEAD, lambda _: b"x")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert b"urn:tenfold:upload-too-slow" in answer
    assert TIMEOUT - 0.1 < seconds < TIMEOUT + 5
    eventually(lambda: b"uploads_under_way 0.0" in impatient.service.telemetry.exposition(), "it counts no more")


def test_the_rest_of_a_body_that_nobody_reads_is_not_waited_for(impatient: Running) -> None:
    head = HEAD.replace(b"/predict", b"/nowhere")
    answer, seconds = dripped(impatient, head, lambda _: b"x")
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert seconds < PATIENCE + 5


def test_the_deadline_counts_from_the_first_byte(impatient: Running) -> None:
    with impatient.connect() as connection:
        connection.sendall(HEAD[:10])
        time.sleep(TIMEOUT + 0.2)
        connection.sendall(HEAD[10:] + picture())
        assert connection.recv(65536).startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 504 "))


def test_a_connection_that_sends_in_time_is_kept(impatient: Running) -> None:
    with impatient.connect() as connection:
        for _ in range(5):
            connection.sendall(HEAD + picture())
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.4)
