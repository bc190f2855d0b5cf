"""Clients that send a request slowly, over bare connections."""

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.process.protocol import http_protocol
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


def test_a_request_that_expects_100_continue_gets_it_before_the_response(service: Running) -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nContent-Type: image/png\r\nExpect: 100-continue\r\n\r\n")
    with service.connect() as connection:
        connection.sendall(head)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(image_file())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_the_response_to_head_is_sent_without_a_body(service: Running) -> None:
    with service.connect() as connection:
        for _ in range(2):
            connection.sendall(b"HEAD /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            received = connection.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
            assert received.endswith(b"\r\n\r\n")


class RecordingTransport(asyncio.Transport):
    """Records what is written, and whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.written.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return False


def respond_with(*messages: dict[str, Any]) -> RecordingTransport:
    """The transport after a GET request to an application that sends these messages."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    async def run() -> RecordingTransport:
        config = uvicorn.Config(app, log_config=None, lifespan="off")
        config.load()
        protocol = http_protocol(TIMEOUT)(config, ServerState(), {})
        transport = RecordingTransport()
        protocol.connection_made(transport)
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await asyncio.gather(*protocol.tasks)
        protocol.connection_lost(None)
        return transport

    return asyncio.run(run())


HEADERS = [(b"content-length", b"4")]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
BODY = {"type": "http.response.body", "body": b"body"}


def test_the_head_of_a_response_is_sent_together_with_its_body() -> None:
    (response,) = respond_with(START, BODY).written
    assert response.startswith(b"HTTP/1.1 200 ")
    assert response.endswith(b"\r\n\r\nbody")


def test_the_parts_of_a_body_are_sent_one_by_one() -> None:
    first, second = respond_with(START, {**BODY, "body": b"bo", "more_body": True}, {**BODY, "body": b"dy"}).written
    assert first.endswith(b"\r\n\r\nbo")
    assert second == b"dy"


def test_the_head_is_sent_if_the_application_fails_before_the_body() -> None:
    transport = respond_with(START)
    (head,) = transport.written
    assert head.endswith(b"\r\n\r\n")
    assert transport.closed
