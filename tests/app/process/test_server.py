"""The server of `python -m app` in a thread; test_main_process.py runs whole processes."""

import http.client
import json
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.app.fakes import image_file
from tests.app.http.routes.test_v2 import images
from tests.app.running import Running, Visitor, eventually, serving

CLIENTS = 8
HEAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(image_file())


def send_signal(service: Running, sig: signal.Signals = signal.SIGTERM) -> None:
    service.server.handle_exit(sig, None)


def stopped_listening(service: Running) -> bool:
    return not any(server.is_serving() for server in service.server.servers)


def status_of(connection: socket.socket) -> tuple[int, str | None]:
    """Status and Connection header of the next response."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status, response.getheader("Connection")


@pytest.mark.parametrize("attempt", range(2))
def test_no_request_of_many_clients_is_lost_when_the_service_ends(attempt: int) -> None:
    with serving(drain_delay=1.0, timeout=60) as service:
        visitors = [Visitor(service.port) for _ in range(CLIENTS)]
        eventually(lambda: all(len(visitor.responses) > 3 for visitor in visitors), "all are served")
        send_signal(service)
        for visitor in visitors:
            visitor.join()
    for visitor in visitors:
        assert isinstance(visitor.ended, httpx.ConnectError), f"a request was lost: {visitor.ended!r}"
        assert {status for _, status, _ in visitor.responses} == {200}


@pytest.mark.parametrize("attempt", range(3))
def test_none_of_many_short_connections_is_lost_when_the_service_ends(attempt: int) -> None:
    def visit() -> None:
        while True:
            try:
                connection = service.connect()
            except OSError as error:
                ended.append(type(error))
                return
            with connection:
                connection.sendall(HEAD + image_file())
                if status_of(connection)[0] != 200:
                    return

    ended: list[type[OSError]] = []
    with serving(drain_delay=0.1, timeout=60) as service, ThreadPoolExecutor(CLIENTS) as clients:
        visits = [clients.submit(visit) for _ in range(CLIENTS)]
        time.sleep(0.2)
        send_signal(service)
        for each in visits:
            each.result()
    assert ended == [ConnectionRefusedError] * CLIENTS


def test_a_request_in_progress_is_finished() -> None:
    with serving() as service:
        service.engine.block()
        pending = service.in_background(lambda: service.post(image_file()))
        service.engine.wait_entered()
        send_signal(service)
        eventually(lambda: stopped_listening(service), "it stops listening")
        time.sleep(0.4)
        assert not pending.done
        service.engine.release()
        assert pending.result().status_code == 200
        assert pending.result().headers["Connection"] == "close"


def test_an_upload_in_progress_is_finished() -> None:
    with serving() as service, service.connect() as connection:
        connection.sendall(HEAD + image_file()[:50])
        eventually(lambda: bool(service.server.server_state.tasks), "the request has begun")
        send_signal(service)
        eventually(lambda: stopped_listening(service), "it stops listening")
        time.sleep(0.4)
        connection.sendall(image_file()[50:])
        assert status_of(connection) == (200, "close")


@pytest.mark.parametrize("before", [0, 1, len(HEAD) - 1], ids=["nothing", "a byte", "most of its head"])
def test_a_request_that_arrives_late_on_an_accepted_connection_is_answered(before: int) -> None:
    first, rest = HEAD[:before], HEAD[before:] + image_file()
    with serving() as service, service.connect() as connection:
        connection.sendall(first)
        send_signal(service)
        eventually(lambda: stopped_listening(service), "it stops listening")
        connection.sendall(rest)
        assert status_of(connection) == (200, "close")


def test_a_connection_without_a_request_does_not_keep_it_from_ending() -> None:
    with serving(drain_timeout=60, timeout=60) as service, service.connect():
        send_signal(service)
        eventually(lambda: not service.thread.is_alive(), "it ends", seconds=30)


def test_an_idle_connection_is_closed_at_once() -> None:
    def seconds() -> float:
        with serving(drain_timeout=60) as service:
            assert service.post(image_file()).status_code == 200
            began = time.monotonic()
            send_signal(service)
            service.thread.join(20)
            return time.monotonic() - began

    # One of several attempts suffices: the machine may be busy. A connection without a request is kept for two seconds.
    assert any(seconds() < 1.9 for _ in range(5))


def test_it_answers_during_the_drain_delay_and_then_ends() -> None:
    with serving(drain_delay=2.0) as service:
        began = time.monotonic()
        send_signal(service)
        eventually(lambda: service.client.get("/readyz").status_code == 503, "it is not ready")
        assert service.post(image_file()).status_code == 200
        eventually(lambda: stopped_listening(service), "it stops listening")
        assert time.monotonic() - began >= 2.0


def test_ctrl_c_skips_the_drain_delay_but_not_the_requests_in_progress() -> None:
    with serving(drain_delay=60.0) as service:
        service.engine.block()
        pending = service.in_background(lambda: service.post(image_file()))
        service.engine.wait_entered()
        send_signal(service, signal.SIGINT)
        eventually(lambda: stopped_listening(service), "it stops listening")
        service.engine.release()
        assert pending.result().status_code == 200


def test_a_second_signal_does_not_wait_for_requests() -> None:
    with serving(drain_delay=60.0, drain_timeout=60) as service:
        service.engine.block()
        with service.connect() as connection:
            connection.sendall(HEAD + image_file())
            service.engine.wait_entered()
            send_signal(service)
            send_signal(service)
            eventually(lambda: not service.thread.is_alive(), "it ends, though the engine is still blocked")


@pytest.mark.parametrize("ends", ["by the drain timeout", "by a second signal"])
@pytest.mark.parametrize("path", ["/predict", "/v2/models/fake-net-image/infer"])
def test_a_request_that_is_cut_off_gets_503(path: str, ends: str) -> None:
    data = image_file() if path == "/predict" else json.dumps(images(image_file())).encode()
    with serving(drain_timeout=1 if ends == "by the drain timeout" else 60) as service:
        service.engine.block()
        with service.connect() as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nX-Request-ID: mine\r\nContent-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data)
            service.engine.wait_entered()
            began = time.monotonic()
            send_signal(service)
            if ends == "by a second signal":
                send_signal(service)
            response = http.client.HTTPResponse(connection)
            response.begin()
            content = json.loads(response.read())
            assert ends == "by a second signal" or 1.0 <= time.monotonic() - began < 10
        assert (response.status, response.getheader("Connection")) == (503, "close")
        assert response.getheader("X-Request-ID") == "mine"
        assert "total;dur=" in response.getheader("Server-Timing", "")
        assert response.getheader("Retry-After") == "1"
        if path == "/predict":
            assert (content["type"], content["status"]) == ("urn:tenfold:not-ready", 503)
            assert "shut down" in content["detail"]
        else:
            assert list(content) == ["error"]
        metrics = service.service.telemetry.exposition().decode()
        statuses = re.findall(r'tenfold_requests_total{.*route="/(?:predict|v2.*infer)".*status="(\d+)"} 1.0', metrics)
        assert statuses == ["503"]


def test_a_large_upload_that_is_refused_during_the_drain_gets_its_response() -> None:
    size = 15_000_000  # more than the buffers of the sockets hold
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n\r\n"
    with serving(drain_delay=60.0, queue_size=1, max_files=1, timeout=60) as service:
        service.engine.block()
        pending = service.in_background(lambda: service.post(image_file()))
        service.wait_admitted(1)
        send_signal(service)
        eventually(lambda: service.client.get("/readyz").status_code == 503, "it drains")
        with service.connect() as connection:
            connection.sendall(head.encode() + bytes(size))
            assert status_of(connection) == (503, "close")
            assert connection.recv(1) == b"", "the connection is closed"
        service.engine.release()
        assert pending.result().status_code == 200


def test_a_refused_upload_that_does_not_end_keeps_the_connection_for_seconds_only() -> None:
    with serving(drain_delay=60.0, max_body_bytes=100, timeout=60) as service, service.connect() as connection:
        send_signal(service)
        eventually(lambda: service.client.get("/readyz").status_code == 503, "it drains")
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
        assert status_of(connection) == (413, "close")
        eventually(lambda: not service.server.server_state.connections, "the connection is closed")


def test_an_idle_connection_is_kept_for_the_keep_alive_timeout() -> None:
    with serving(keep_alive_timeout=1) as service, service.connect() as connection:
        for _ in range(2):
            connection.sendall(HEAD + image_file())
            assert status_of(connection)[0] == 200
            began = time.monotonic()
        assert connection.recv(1) == b""
        assert 0.5 < time.monotonic() - began < 15
