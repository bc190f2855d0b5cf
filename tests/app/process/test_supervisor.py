"""The supervisor of several workers, with a fake engine; test_workers.py has a real one."""

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.process.workers import worker_count
from app.settings import Settings
from tests.app.fakes import image_file
from tests.app.process.test_workers import children, metric
from tests.app.running import Process, Visitor, eventually, process

FAKE = ["-m", "tests.app.fake_service"]
SETTINGS = {"TENFOLD_PORT": "0", "TENFOLD_WORKERS": "2", "TENFOLD_DRAIN_DELAY": "0.5", "TENFOLD_TIMEOUT": "60"}
CLIENTS = 8
LOADED = "serving fake-net"
REQUEST = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(image_file()) + image_file()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_a_worker_that_is_terminated_loses_no_request_and_is_replaced(log: Path) -> None:
    with process(SETTINGS, log, arguments=[*FAKE, "works"]) as running:
        running.wait_logged(LOADED, 2)
        visitors = [Visitor(running.port) for _ in range(CLIENTS)]
        first, second = children(running)
        os.kill(first, signal.SIGTERM)
        running.wait_logged(f"worker {first} ended with exit code 0")
        for _ in range(10):
            with running.client() as client:
                assert client.post("/predict", content=image_file()).status_code == 200
        running.wait_logged(LOADED, 3)
        assert second in children(running)
        assert len(children(running)) == 2
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0
        for visitor in visitors:
            visitor.join()
            assert isinstance(visitor.ended, httpx.ConnectError), f"a request was lost: {visitor.ended!r}"
            assert {status for _, status, _ in visitor.responses} == {200}
        assert "Traceback" not in running.log


@contextlib.contextmanager
def loading_after(file: Path, log: Path, *, workers: int = 2) -> Iterator[Process]:
    """A service that loads its model once the file exists."""
    settings = {**SETTINGS, "TENFOLD_WORKERS": str(workers), "LOAD_AFTER": str(file)}
    with process(settings, log, arguments=[*FAKE, "works"]) as running:
        yield running


def statuses(running: Process, path: str) -> set[int]:
    """Of many requests, each on a connection of its own."""
    with running.client() as client:
        return {client.get(path, headers={"Connection": "close"}).status_code for _ in range(30)}


def test_a_worker_accepts_no_connection_before_it_is_ready_if_another_one_runs(log: Path) -> None:
    complete = log.with_name("complete")
    with loading_after(complete, log) as running:
        assert statuses(running, "/livez") == {200}, "the first worker answers probes while it loads"
        assert statuses(running, "/readyz") == {503}
        complete.touch()
        running.wait_logged(LOADED, 2)
        complete.unlink()
        killed, left = children(running)
        os.kill(killed, signal.SIGKILL)
        running.wait_logged("Started server process", 3)
        assert statuses(running, "/readyz") == {200}
        complete.touch()
        running.wait_logged(LOADED, 3)
        os.kill(left, signal.SIGTERM)
        running.wait_logged(f"worker {left} ended with exit code 0")
        with running.client() as client:
            assert client.post("/predict", content=image_file()).status_code == 200, "the other one listens now"
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0
        assert "Traceback" not in running.log


@pytest.mark.slow
def test_if_all_workers_end_a_new_one_answers_probes_while_it_loads(log: Path) -> None:
    complete = log.with_name("complete")
    complete.touch()
    with loading_after(complete, log) as running:
        running.wait_logged(LOADED, 2)
        complete.unlink()
        for worker in children(running):
            os.kill(worker, signal.SIGKILL)
        running.wait_logged("was killed", 2)
        assert statuses(running, "/livez") == {200}
        assert statuses(running, "/readyz") == {503}


@pytest.mark.slow
def test_if_the_worker_that_listens_ends_while_all_load_another_one_answers_probes(log: Path) -> None:
    with loading_after(log.with_name("complete"), log, workers=3) as running:
        running.wait_logged("Started server process", 3)
        os.kill(children(running)[0], signal.SIGKILL)
        running.wait_logged("was killed")
        assert statuses(running, "/livez") == {200}
        assert statuses(running, "/readyz") == {503}


def test_none_of_many_short_connections_is_lost_when_the_service_ends(log: Path) -> None:
    def visit() -> type[OSError] | None:
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=20)
            except OSError as error:
                return type(error)
            with connection:
                connection.sendall(REQUEST)
                if not connection.recv(65536).startswith(b"HTTP/1.1 200 "):
                    return None

    with process(SETTINGS, log, arguments=[*FAKE, "works"]) as running, ThreadPoolExecutor(CLIENTS) as clients:
        running.wait_logged(LOADED, 2)
        port = running.port
        visits = [clients.submit(visit) for _ in range(CLIENTS)]
        time.sleep(0.2)
        running.popen.send_signal(signal.SIGTERM)
        assert [each.result() for each in visits] == [ConnectionRefusedError] * CLIENTS
        assert running.exit_code() == 0


def test_workers_that_are_killed_at_once_are_replaced_after_growing_delays(log: Path) -> None:
    with process({**SETTINGS, "TENFOLD_WORKERS": "1"}, log, arguments=[*FAKE, "crashes"]) as running:
        began = time.monotonic()
        running.wait_logged("starts in 2 s")
        assert time.monotonic() - began > 1.5
        assert re.findall(r"was killed by signal 9: another one starts in ([\d.]+) s", running.log) == ["0.5", "1", "2"]
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_requests(first: signal.Signals, log: Path) -> None:
    settings = {**SETTINGS, "TENFOLD_TIMEOUT": "300", "TENFOLD_STALL_TIMEOUT": "300", "TENFOLD_DRAIN_TIMEOUT": "300"}
    with process(settings, log, arguments=[*FAKE, "hangs"]) as running:
        running.wait_logged(LOADED, 2)
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(REQUEST)
            eventually(
                lambda: metric(running, 'tenfold_pictures_under_way{model="fake-net"}') == 1,
                "the engine is busy",
                seconds=60,
            )
            running.popen.send_signal(first)
            running.wait_logged("Shutting down", 2)
            assert running.popen.poll() is None, "it waits for the request"
            running.popen.send_signal(first)
            assert running.exit_code() == 0


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (2, 1), (7, 1), (8, 2), (64, 16)])
def test_auto_is_a_worker_for_every_four_cpus(cpus: int, expected: int, tmp_path: Path) -> None:
    automatic = Settings.model_validate({"workers": "auto"})
    assert worker_count(automatic, cpus, tmp_path / "none") == expected
    assert worker_count(Settings(workers=3), cpus) == 3


def test_auto_is_one_worker_with_cuda(tmp_path: Path) -> None:
    (tmp_path / "cuda").touch()
    automatic = Settings.model_validate({"workers": "auto"})
    assert worker_count(automatic, 16, tmp_path / "cuda") == 1
    assert worker_count(automatic.model_copy(update={"device": "cuda"}), 16, tmp_path / "none") == 1
    assert worker_count(automatic.model_copy(update={"device": "cpu"}), 16, tmp_path / "cuda") == 4
