"""Clients that send a request slowly, over bare connections."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.app.fakes import image_file
from tests.app.running import Running, serving

TIMEOUT = 0.5
# The protocol waits a second longer.
CLOSED = TIMEOUT + 1.0
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(image_file())


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with serving(timeout=TIMEOUT) as service:
        yield service


def send_slowly(service: Running, head: bytes, piece: Callable[[int], bytes]) -> tuple[bytes, float]:
    """Send a head, then a piece every 50 ms, until the service closes the connection.

    Returns:
        What was received, and after how many seconds the connection was closed.
    """
    received = b""
    began = time.monotonic()
    with service.connect() as connection:
        connection.sendall(head)
        connection.settimeout(0.05)
        for step in range(200):
            try:
                data = connection.recv(65536)
            except TimeoutError:
                try:
                    connection.sendall(piece(step))
                except OSError:
                    break
            except OSError:
                break
            else:
                if not data:
                    break
                received += data
        else:
            raise AssertionError("the service never closed the connection")
        return received, time.monotonic() - began


def test_a_connection_without_a_request_is_closed(service: Running) -> None:
    received, seconds = send_slowly(service, b"", lambda _: b"")
    assert received == b""
    assert CLOSED <= seconds < CLOSED + 5


def test_a_connection_with_a_slow_head_is_closed(service: Running) -> None:
    received, seconds = send_slowly(service, b"GET /livez HTTP/1.1\r\n", lambda step: b"X-%d: 1\r\n" % step)
    assert received == b""
    assert CLOSED <= seconds < CLOSED + 5


def test_a_connection_whose_second_head_is_slow_is_closed(service: Running) -> None:
    whole = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    received, _ = send_slowly(service, whole + b"GET /livez HTTP/1.1\r\n", lambda step: b"X-%d: 1\r\n" % step)
    assert received.count(b"HTTP/1.1 200 ") == 1


def test_a_slow_body_is_answered_with_408_at_the_deadline_and_its_connection_closed(service: Running) -> None:
    received, seconds = send_slowly(service, HEAD, lambda _: b"x")
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in received.lower()
    assert b"urn:tenfold:upload-too-slow" in received
    assert TIMEOUT <= seconds < TIMEOUT + 5
    service.wait_uploads(0)


def test_the_rest_of_a_body_that_is_not_read_is_not_waited_for(service: Running) -> None:
    head = HEAD.replace(b"/predict", b"/nowhere")
    received, seconds = send_slowly(service, head, lambda _: b"x")
    assert received.startswith(b"HTTP/1.1 404 ")
    assert seconds < CLOSED + 5


def test_the_deadline_counts_from_the_first_byte(service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(HEAD[:10])
        time.sleep(TIMEOUT + 0.2)
        connection.sendall(HEAD[10:] + image_file())
        assert connection.recv(65536).startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 504 "))


def test_a_connection_that_sends_in_time_is_kept(service: Running) -> None:
    with service.connect() as connection:
        for _ in range(5):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            time.sleep(0.4)
