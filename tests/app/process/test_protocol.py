"""Clients that send or read slowly, or send what is not HTTP, over bare connections."""

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.process.protocol import http_protocol
from tests.app.fakes import image_file
from tests.app.running import Running, eventually, serving
from tests.memory import forget_peak, peak, resident

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


def test_a_steady_slow_body_is_accepted_and_its_response_has_the_whole_timeout() -> None:
    body = image_file() + bytes(40_000)
    head = b"POST /predict HTTP/1.1\r\nContent-Type: image/png\r\nContent-Length: %d\r\n" % len(body)
    with serving(timeout=TIMEOUT, upload_timeout=30) as service:

        def send(*, more: bytes = b"", pieces: int = 20) -> tuple[bytes, float]:
            size = -(-len(body) // 20)
            began = time.monotonic()
            with service.connect() as connection:
                connection.sendall(head + more + b"\r\n")
                with suppress(ConnectionError):
                    for index in range(pieces):
                        connection.sendall(body[index * size : (index + 1) * size])
                        time.sleep(0.1)
                return connection.recv(65536), time.monotonic() - began

        received, seconds = send()
        assert received.startswith(b"HTTP/1.1 200 ")
        assert seconds > CLOSED + 0.3
        stalled, seconds = send(pieces=10)
        assert stalled.startswith(b"HTTP/1.1 408 ")
        assert seconds < 1.0 + CLOSED + 5
        limited, _ = send(more=b"X-Request-Timeout: 0.4\r\n")
        assert limited.startswith(b"HTTP/1.1 408 ")
    with serving(timeout=TIMEOUT, upload_timeout=1) as service:
        assert send()[0].startswith(b"HTTP/1.1 408 ")


def test_a_small_body_needs_no_room_and_uploads_that_stall_make_room_soon() -> None:
    large = image_file().ljust(2_000_000, b"x")
    with serving(max_uploads=3, timeout=30) as service, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(service.connect()).sendall(HEAD + b"x")
        service.wait_uploads(3)
        assert service.post(image_file()).status_code == 200
        assert service.post(large).status_code == 503
        eventually(lambda: service.post(large).status_code == 200, "there is room", seconds=5)


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


def test_bytes_between_requests_do_not_keep_a_connection() -> None:
    with serving(timeout=TIMEOUT, keep_alive_timeout=1) as service, service.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"\r\n")
        assert connection.recv(65536) == b""


@pytest.mark.parametrize("method", [b"GET /livez", b"POST /predict"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_an_upgrade_is_ignored(method: bytes, chunked: bool, at_once: bool, service: Running) -> None:
    body = image_file() if method.startswith(b"POST") else b""
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    head = b"%s HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n%s\r\n\r\n" % (
        method,
        framing,
    )
    if chunked:
        body = (b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    with service.connect() as connection:
        for _ in range(2):
            if at_once:
                connection.sendall(head + body)
            else:
                connection.sendall(head)
                time.sleep(0.1)
                connection.sendall(body)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        # Two requests in one write, of which the first one requests an upgrade.
        connection.sendall(head + body + b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
        assert received.count(b"HTTP/1.1 200 ") == 2


def half_closed(service: Running, *requests: bytes) -> bytes:
    """All that a client receives that sends requests and then shuts down its sending half."""
    with service.connect() as connection:
        connection.sendall(b"".join(requests))
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_client_that_shuts_down_its_sending_half_gets_its_responses() -> None:
    livez = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"
    with serving() as service:
        received = half_closed(service, HEAD, image_file())
        assert received.startswith(b"HTTP/1.1 200 ")
        assert json.loads(received.partition(b"\r\n\r\n")[2])["results"]
        several = half_closed(service, livez, HEAD, image_file(), livez)
        assert several.count(b"HTTP/1.1 200 ") == 3
        assert half_closed(service, livez.replace(b"GET", b"HEAD")).count(b"HTTP/1.1 200 ") == 1
        expects = HEAD.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
        assert b"HTTP/1.1 200 " in half_closed(service, expects, image_file())
        head = HEAD.replace(b"%d" % len(image_file()), b"400000")
        large = head.replace(b"\r\n\r\n", b"\r\nContent-Type: image/png\r\n\r\n")
        assert b"HTTP/1.1 200 " in half_closed(service, large, image_file().ljust(400_000, b"x"))
        assert half_closed(service, HEAD, image_file()[:50]) == b"", "this request can never be complete"
        assert half_closed(service) == b""
        assert half_closed(service, livez[:20]) == b""
        eventually(lambda: not service.server.server_state.connections, "all connections are closed")


def test_a_client_that_shuts_down_its_sending_half_gets_a_response_that_takes_long() -> None:
    with serving() as service:
        service.engine.block()
        with service.connect() as connection:
            connection.sendall(HEAD + image_file())
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(65536) == b"H", "this reveals whether the client is still there"
            time.sleep(0.6)
            service.engine.release()
            received = b"H" + b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert received.count(b"HTTP/1.1") == 1
    assert b"connection: close\r\n" in received


PIPELINED = b"GET /livez HTTP/1.1\r\nX-Number: %d\r\n\r\n"


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (b"GET /livez HT", b""),
        (b"POST /predict HTTP/1.1\r\nContent-Length: 9\r\n\r\nx", b""),
        (b"GET / FTP/1.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 200, b"HTTP/1.1 431 "),
    ],
    ids=["incomplete head", "incomplete body", "invalid", "too large"],
)
@pytest.mark.parametrize("length", [1, 300])
def test_what_follows_complete_requests_loses_none_of_their_responses(
    length: int, last: bytes, status: bytes, service: Running
) -> None:
    first = b"GET /livez HTTP/1.1\r\nX-Padding: %s\r\n\r\n" % (b"x" * length)
    received = half_closed(service, first, HEAD, image_file(), first, last)
    assert received.count(b"HTTP/1.1 200 ") == 3
    assert status in received
    assert len(re.findall(rb"HTTP/1\.1 \d", received)) == 3 + bool(status)


def test_pipelined_requests_are_answered_in_order_and_take_little_memory(service: Running) -> None:
    """The service runs in this process, so its memory is ours."""
    count = 20_000
    requests = b"".join(PIPELINED % number for number in range(count))
    forget_peak("self")
    before = resident("self")
    with service.connect() as connection:
        sender = threading.Thread(target=connection.sendall, args=[requests])
        sender.start()
        time.sleep(1.0)  # nothing is read meanwhile
        assert service.client.get("/livez").elapsed.total_seconds() < 1
        received = connection.makefile("rb")
        ids = set()
        for _ in range(count):
            assert received.readline() == b"HTTP/1.1 200 OK\r\n"
            head = dict(line.rstrip().split(b": ", 1) for line in iter(received.readline, b"\r\n"))
            ids.add(head[b"x-request-id"])
            received.read(int(head[b"content-length"]))
        sender.join()
    assert len(ids) == count
    assert peak("self") - before < 8_000_000


def test_the_bytes_of_unfinished_heads_and_waiting_requests_are_counted() -> None:
    with serving(max_held_bytes=200_000, max_body_bytes=1_000) as service, ExitStack() as stack:

        def hold(data: bytes) -> socket.socket:
            connection = stack.enter_context(service.connect())
            connection.sendall(data)
            return connection

        def held() -> int:
            return service.service.limits.held_bytes.used.get("", 0)

        head = b"GET / HTTP/1.1\r\nX: " + b"x" * 45_000
        first = hold(head)
        eventually(lambda: held() > 40_000, "one head is held")
        hold(head)
        eventually(lambda: held() > 80_000, "two heads are held")
        line, problem = refusal(hold(head).recv(65536))
        assert line == b"HTTP/1.1 503 Service Unavailable"
        assert "memory" in problem["detail"]
        assert service.post(image_file()).status_code == 200
        first.sendall(b"\r\n\r\n")
        assert first.recv(65536).startswith(b"HTTP/1.1 200 ")
        service.engine.block()
        hold(HEAD + image_file() + PIPELINED * 1_000)
        eventually(lambda: 60_000 < held() < 90_000, "requests wait")
        service.engine.release()
        stack.close()
        eventually(lambda: held() == 0, "all bytes are released")


def test_connections_are_limited() -> None:
    with serving(max_connections=3) as service, ExitStack() as stack:
        connections = [stack.enter_context(service.connect()) for _ in range(3)]
        for connection in connections:
            connection.sendall(PIPELINED)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        line, problem = refusal(stack.enter_context(service.connect()).recv(65536))
        assert line == b"HTTP/1.1 503 Service Unavailable"
        assert "connections" in problem["detail"]
        connections[0].close()
        eventually(lambda: service.client.get("/livez").status_code == 200, "there is room again")
        assert "tenfold_connections_refused_total 0.0" not in service.client.get("/metrics").text


def test_the_kernel_holds_little_of_a_response(service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(PIPELINED)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        protocols: list[Any] = list(service.server.server_state.connections)
        (own,) = (each for each in protocols if each.client == connection.getsockname())
        size = own.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert size <= 256 << 10


def refusal(received: bytes) -> tuple[bytes, dict[str, Any]]:
    """The first line of a response, and the problem in its body."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert b"connection: close" in head
    problem = json.loads(body)
    assert f"x-request-id: {problem['instance']}".encode() in head
    return head.partition(b"\r\n")[0], problem


@pytest.mark.parametrize("head", [b"\x16\x03\x01\x02\0\1\0", b"GET / FTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\na b: c\r\n"])
def test_what_is_not_http_gets_a_problem(head: bytes, service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(head)
        line, problem = refusal(b"".join(iter(lambda: connection.recv(65536), b"")))
    assert line == b"HTTP/1.1 400 Bad Request"
    assert "not a valid HTTP/1.1 request" in problem["detail"]


@pytest.mark.parametrize("digits", [b"0" * 4_401 + b"5", b"9" * 19, b"9" * 4_401], ids=["zeros", "19", "4401"])
@pytest.mark.parametrize("path", [b"/livez", b"/predict", b"/nowhere"])
def test_a_content_length_of_many_digits_is_refused(path: bytes, digits: bytes, service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nContent-Length: %s\r\n\r\n" % (path, digits))
        line, _ = refusal(connection.recv(65536))
    assert line == b"HTTP/1.1 400 Bad Request"


def test_a_hundred_fields_are_accepted_and_a_hundred_parameters(service: Running) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET /livez?%s HTTP/1.1\r\n%s\r\n" % (b"&".join([b"a"] * 100), b"a: b\r\n" * 100))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    began = time.process_time()
    assert service.client.get("/drift?" + "&".join(["a"] * 8_000)).status_code == 422
    assert service.client.post("/predict?" + "&".join(["a"] * 8_000)).status_code == 422
    assert time.process_time() - began < 0.05


def test_a_body_in_many_small_chunks_is_refused(service: Running) -> None:
    head = HEAD.partition(b"Content-Length")[0] + b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = image_file()
    some = b"".join(b"1\r\n%s\r\n" % body[index : index + 1] for index in range(len(body)))
    large = b"".join(b"3e8\r\n%s\r\n" % (b"x" * 1000) for _ in range(3_000))
    with service.connect() as connection:
        connection.sendall(head + some + b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(head + large + b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 415 ")
        with suppress(ConnectionError):
            connection.sendall(head + b"1\r\nx\r\n" * 100_000)
            assert not b"".join(iter(lambda: connection.recv(65536), b"")).startswith(b"HTTP/1.1 2")


@pytest.mark.parametrize("piece", [b"a" * 65536, b"a: b\r\n" * 10_000], ids=["one long field", "many fields"])
@pytest.mark.parametrize(
    "start",
    [b"GET /livez HTTP/1.1\r\na: ", b"GET /livez HTTP/1.1\r\n\r\nGET /livez HTTP/1.1\r\na: "],
    ids=["first request", "second request"],
)
def test_a_large_head_is_refused(start: bytes, piece: bytes) -> None:
    with serving() as service, service.connect() as connection:
        connection.sendall(start)
        if start.count(b"GET") == 2:
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        forget_peak("self")
        before = resident("self")
        sent = 0
        with suppress(OSError):
            for _ in range(500):
                connection.sendall(piece)
                sent += len(piece)
        assert sent > 20_000_000, "the connection was reset before the client could read the response"
        assert peak("self") - before < 8_000_000
        line, problem = refusal(connection.recv(65536))
    assert line == b"HTTP/1.1 431 Request Header Fields Too Large"
    assert "65536 bytes" in problem["detail"]


def test_large_trailers_end_the_connection() -> None:
    head = HEAD.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    with serving() as service, service.connect() as connection, suppress(ConnectionError):
        connection.sendall(head)
        for _ in range(1_000):
            connection.sendall(b"a: b\r\n" * 10_000)
        raise AssertionError("60 MB of trailers were accepted")


def test_a_head_that_comes_with_the_end_of_a_body_is_not_counted_with_it(service: Running) -> None:
    body = image_file() + b"x" * 300_000
    head = HEAD.partition(b"Content-Length")[0] + b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(body)
    with service.connect() as connection:
        connection.sendall(head + body + b"GET /livez HTTP/1.1\r\n")
        time.sleep(0.2)
        connection.sendall(b"Connection: close\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert received.count(b"HTTP/1.1 200 ") == 2


LARGE = b"x" * 8_000_000


async def _responds_with_much(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"%d" % len(LARGE))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": LARGE})


@asynccontextmanager
async def requested_much(*, keep_alive: bool) -> AsyncIterator[tuple[socket.socket, ServerState]]:
    """A client that has requested a large response, and the state of the server."""
    config = uvicorn.Config(_responds_with_much, log_config=None, lifespan="off", timeout_keep_alive=1)
    config.load()
    protocol, state = http_protocol(TIMEOUT), ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), "127.0.0.1", 0)
    async with server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
            client.setblocking(False)
            await loop.sock_connect(client, server.sockets[0].getsockname())
            connection = b"keep-alive" if keep_alive else b"close"
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: %s\r\n\r\n" % connection)
            yield client, state


@pytest.mark.parametrize("keep_alive", [False, True])
def test_a_connection_whose_response_is_not_read_is_closed(keep_alive: bool) -> None:
    async def main() -> None:
        async with requested_much(keep_alive=keep_alive) as (_, state), asyncio.timeout(20):
            while not state.connections:
                await asyncio.sleep(0.01)
            while state.connections:
                await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("keep_alive", [False, True])
def test_a_response_that_is_read_slowly_arrives(keep_alive: bool) -> None:
    async def main() -> None:
        loop, received = asyncio.get_running_loop(), 0
        async with requested_much(keep_alive=keep_alive) as (client, _), asyncio.timeout(60):
            began = loop.time()
            while received < len(LARGE):
                data = await loop.sock_recv(client, 200_000)
                assert data, "the connection was closed"
                received += len(data)
                await asyncio.sleep(0.05)
            assert loop.time() - began > 2 * TIMEOUT, "this was not slow"

    asyncio.run(main())


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

    def get_write_buffer_size(self) -> int:
        return 0


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
