"""TENFOLD_WORKERS: several fronts and one engine process on one socket, and their failures."""

import contextlib
import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from app.feedback.store import Store
from app.process.fronts import front_count, shares
from app.settings import Settings
from tests.app.fakes import CARD, LABELS, image_file
from tests.app.http.routes.test_v2 import images
from tests.app.process.test_main_process import environment
from tests.app.running import Process, Visitor, eventually, process

FAKE = ["-m", "tests.app.fake_service"]
SETTINGS = {
    "TENFOLD_PORT": "0",
    "TENFOLD_WORKERS": "2",
    "TENFOLD_DRAIN_DELAY": "0.5",
    "TENFOLD_TIMEOUT": "60",
    "SILENCE": "3",
}
CLIENTS = 8
LOADED = "serving fake-net"
REQUEST = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(image_file()) + image_file()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def two_fronts(weights: Path, **more: str) -> dict[str, str]:
    return environment(weights, TENFOLD_WORKERS="2", **more)


@contextlib.contextmanager
def fake(log: Path, mode: str = "works", **more: str) -> Iterator[Process]:
    """Fronts and an engine process with a fake engine, which is ready unless it loads later."""
    with process({**SETTINGS, **more}, log, arguments=[*FAKE, mode]) as running:
        if "LOAD_AFTER" not in more:
            running.wait_logged(LOADED)
            wait_ready(running, int(more.get("TENFOLD_WORKERS", "2")))
        yield running


def wait_ready(service: Process, fronts: int = 2) -> None:
    """Wait until all fronts are ready."""
    eventually(lambda: metric(service, "tenfold_ready") == fronts, f"{fronts} fronts are ready", seconds=120)


def metric(service: Process, name: str) -> float:
    with service.client() as client:
        found = re.search(rf"^{re.escape(name)} ([\d.e+]+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def children(service: Process, role: str) -> list[int]:
    """The IDs of the processes with a role, front or engine, that are no zombies."""
    path = Path(f"/proc/{service.popen.pid}/task/{service.popen.pid}/children")
    found = []
    for each in path.read_text(encoding="utf-8").split():
        with contextlib.suppress(OSError):
            if role.encode() in Path(f"/proc/{each}/cmdline").read_bytes().split(b"\0"):
                found.append(int(each))
    return found


def runs(process_id: int) -> bool:
    """Whether the process exists and is not a zombie, which an orphan may stay in a container."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def status_of(service: Process, path: str) -> int:
    """The status of a request on a connection of its own."""
    with service.client() as client:
        return client.get(path).status_code


def end(service: Process) -> None:
    """Let it drain."""
    service.popen.send_signal(signal.SIGTERM)
    assert service.exit_code() == 0


@pytest.mark.slow
def test_sigterm_under_load_loses_nothing_and_the_metrics_are_of_all_of_them(int8_bundle: Path, log: Path) -> None:
    with process(two_fronts(int8_bundle, TENFOLD_DRAIN_DELAY="1.5", TENFOLD_TIMEOUT="60"), log) as running:
        wait_ready(running)
        visitors = [Visitor(running.port) for _ in range(4 * CLIENTS)]
        eventually(lambda: all(len(visitor.responses) > 3 for visitor in visitors), "all are served", seconds=120)
        answered = sum(len(visitor.responses) for visitor in visitors)
        counted = metric(running, 'tenfold_pictures_total{model="tiny",outcome="answered"}')
        assert answered <= counted <= sum(len(visitor.responses) for visitor in visitors) + 4 * CLIENTS
        end(running)
        for visitor in visitors:
            visitor.join()
            assert isinstance(visitor.ended, httpx.ConnectError), f"a request was lost: {visitor.ended!r}"
            assert {status for _, status, _ in visitor.responses} == {200}
        assert "Traceback" not in running.log


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_front_that_ends_is_replaced_and_the_others_answer(sig: signal.Signals, log: Path) -> None:
    with fake(log) as running:
        visitors = [Visitor(running.port) for _ in range(CLIENTS)]
        first, second = children(running, "front")
        (engine,) = children(running, "engine")
        eventually(lambda: all(visitor.responses for visitor in visitors), "all are served")
        os.kill(first, sig)
        running.wait_logged(f"front {first} ")
        for _ in range(10):
            with running.client() as client:
                assert client.post("/predict", content=image_file()).status_code == 200
        eventually(lambda: len(children(running, "front")) == 2, "it is replaced")
        wait_ready(running)
        assert second in children(running, "front")
        assert children(running, "engine") == [engine]
        eventually(lambda: metric(running, 'tenfold_pictures_under_way{model="fake-net"}') <= CLIENTS, "none is left")
        end(running)
        for visitor in visitors:
            visitor.join()
            assert {status for _, status, _ in visitor.responses} == {200}
            if sig == signal.SIGTERM:
                assert isinstance(visitor.ended, httpx.ConnectError), f"a request was lost: {visitor.ended!r}"
        assert "Traceback" not in running.log


def test_an_engine_process_that_is_killed_resets_no_connection_and_is_replaced(log: Path) -> None:
    with fake(log, SLOW="0.5") as running, running.client() as client, ThreadPoolExecutor(CLIENTS) as pool:
        fronts = children(running, "front")
        clients = [running.client() for _ in range(CLIENTS)]
        pending = [pool.submit(each.post, "/predict", content=image_file()) for each in clients]
        eventually(lambda: metric(running, 'tenfold_pictures_under_way{model="fake-net"}') == CLIENTS, "all wait")
        (engine,) = children(running, "engine")
        os.kill(engine, signal.SIGKILL)
        responses = [each.result() for each in pending]
        assert Counter(each.status_code for each in responses)[503] > 0
        for response in responses:
            assert response.status_code == 200 or (
                response.json()["type"] == "urn:tenfold:not-ready" and response.headers["Retry-After"] == "1"
            )
        assert status_of(running, "/livez") == 200
        assert status_of(running, "/readyz") == 503
        assert "tenfold_requests_total" in client.get("/metrics").text, "the metrics of the fronts are there"
        running.wait_logged(LOADED, 2)
        wait_ready(running)
        assert children(running, "front") == fronts
        assert [each.post("/predict", content=image_file()).status_code for each in clients] == [200] * CLIENTS
        for each in clients:
            each.close()
        end(running)


def test_an_engine_process_that_ends_three_times_in_a_row_ends_the_service(log: Path) -> None:
    with process(SETTINGS, log, arguments=[*FAKE, "crashes"]) as running:
        assert running.exit_code() == 1
        assert re.findall(r"engine \d+ was killed by signal 9: another one starts in ([\d.]+) s", running.log) == [
            "0.5",
            "1",
        ]
        assert "the 3rd in a row: the service ends" in running.log


@pytest.mark.slow
@pytest.mark.parametrize("role", ["front", "engine"])
def test_a_process_that_is_stopped_is_replaced(role: str, log: Path) -> None:
    with fake(log, TENFOLD_DRAIN_TIMEOUT="3") as running:
        stopped = children(running, role)[0]
        os.kill(stopped, signal.SIGSTOP)
        running.wait_logged(f"{role} {stopped} has been silent for 3 s: it is killed")
        eventually(lambda: not runs(stopped), "it has ended")
        eventually(lambda: len(children(running, role)) == (2 if role == "front" else 1), "it is replaced", seconds=60)
        wait_ready(running)
        for _ in range(10):
            with running.client() as client:
                assert client.post("/predict", content=image_file()).status_code == 200
        os.kill(children(running, "front")[0], signal.SIGSTOP)
        end_began = time.monotonic()
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 1, "a front had to be killed"
        assert time.monotonic() - end_began < 30


@pytest.mark.slow
def test_a_pause_of_all_processes_replaces_none(log: Path) -> None:
    with fake(log) as running:
        everyone = [running.popen.pid, *children(running, "engine"), *children(running, "front")]
        for sig in (signal.SIGSTOP, signal.SIGCONT):
            for each in everyone if sig == signal.SIGSTOP else everyone[:1]:
                os.kill(each, sig)
            time.sleep(5 if sig == signal.SIGSTOP else 0.5)
        for each in everyone[1:]:
            os.kill(each, signal.SIGCONT)
        time.sleep(1)
        assert [running.popen.pid, *children(running, "engine"), *children(running, "front")] == everyone
        assert "silent" not in running.log
        end(running)


def test_probes_get_responses_while_the_models_are_loaded(log: Path) -> None:
    complete = log.with_name("complete")
    with fake(log, LOAD_AFTER=str(complete)) as running:
        running.wait_logged("Application startup complete", 2)
        assert {status_of(running, "/livez") for _ in range(10)} == {200}
        assert {status_of(running, "/readyz") for _ in range(10)} == {503}
        complete.touch()
        wait_ready(running)
        end(running)


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

    with fake(log) as running, ThreadPoolExecutor(CLIENTS) as clients:
        port = running.port
        visits = [clients.submit(visit) for _ in range(CLIENTS)]
        time.sleep(0.2)
        running.popen.send_signal(signal.SIGTERM)
        assert [each.result() for each in visits] == [ConnectionRefusedError] * CLIENTS
        assert running.exit_code() == 0


@pytest.mark.slow
def test_a_request_that_takes_longer_than_the_silence_of_a_process_is_finished_at_the_end(log: Path) -> None:
    with fake(log, SLOW="6") as running, ThreadPoolExecutor(1) as pool, running.client() as client:
        pending = pool.submit(client.post, "/predict", content=image_file())
        eventually(lambda: metric(running, 'tenfold_pictures_under_way{model="fake-net"}') == 1, "it is admitted")
        end(running)
        assert pending.result().status_code == 200


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_requests(first: signal.Signals, log: Path) -> None:
    long = {"TENFOLD_TIMEOUT": "300", "TENFOLD_STALL_TIMEOUT": "300", "TENFOLD_DRAIN_TIMEOUT": "300"}
    with fake(log, "hangs", **long) as running, socket.create_connection(("127.0.0.1", running.port)) as connection:
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


def test_models_that_cannot_be_loaded_end_the_service(tmp_path: Path, log: Path) -> None:
    with process(two_fronts(tmp_path / "none"), log) as running:
        assert running.exit_code() == 1
        assert "name a weights folder" in running.log


def test_an_engine_that_fails_is_replaced_or_ends_the_service(log: Path) -> None:
    with fake(log, "fails") as running, running.client() as client:
        for _ in range(3):
            assert client.post("/predict", content=image_file()).status_code == 500
        assert running.exit_code() == 1, "it failed within seconds, so another one would too"
        assert "the service ends" in running.log


@pytest.mark.parametrize("loaded", [True, False], ids=["serving", "starting"])
def test_no_process_outlives_its_supervisor(loaded: bool, log: Path) -> None:
    more = {} if loaded else {"LOAD_AFTER": str(log.with_name("never"))}
    with fake(log, **more) as running:
        eventually(lambda: len(children(running, "front")) == 2, "all have been started")
        orphans = children(running, "front") + children(running, "engine")
        running.popen.send_signal(signal.SIGKILL)
        eventually(lambda: not any(map(runs, orphans)), "they have ended", seconds=60)


def test_a_port_that_is_taken_ends_it(int8_bundle: Path, log: Path) -> None:
    with (
        fake(log) as running,
        process(two_fronts(int8_bundle, TENFOLD_PORT=str(running.port)), log.with_name("second")) as second,
    ):
        assert second.exit_code() == 1
        assert "address already in use" in second.log.lower()
        assert "choose another address with TENFOLD_HOST and TENFOLD_PORT" in second.log


def test_statistics_drift_and_feedback_are_those_of_all_fronts(log: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    more = {"TENFOLD_DRIFT_MIN_IMAGES": "30", "TENFOLD_FEEDBACK": str(store)}
    with fake(log, **more) as running, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(running.client()) for _ in range(16)]  # to both fronts
        for client in clients:
            assert client.post(f"/v2/models/{CARD.name}-image/infer", json=images(image_file())).status_code == 200
        ids = [client.post("/predict", content=image_file()).headers["X-Request-ID"] for client in clients]
        for client in clients:
            (found,) = client.get(f"/v2/models/{CARD.name}/stats").json()["model_stats"]
            assert found["inference_count"] == found["inference_stats"]["success"]["count"] == 32
            assert found["last_inference"] > 0
            report = client.get("/drift").json()
            assert (report["workers"], report["models"][0]["images"]) == (2, 32)
        assert metric(running, 'tenfold_drift_psi{distribution="confidence",model="fake-net"}') > 0
        sent = [
            client.post("/feedback", json={"request_id": each, "label": LABELS[0]}).status_code
            for client, each in zip(clients[1:] + clients[:1], ids, strict=True)
        ]
        assert sent == [200] * 16, "each label came to another connection than its image"
        labels = [
            metric(running, f'tenfold_feedback_total{{model="fake-net",outcome="{each}"}}')
            for each in ("right", "wrong")
        ]
        assert sum(labels) == 16
        end(running)
    with Store(store, create=False) as opened:
        assert sorted(row.request_id for row in opened.labelled()) == sorted(ids)


def test_the_limit_on_images_holds_over_all_fronts(log: Path) -> None:
    more = {"TENFOLD_QUEUE_SIZE": "4", "TENFOLD_MAX_FILES": "2", "TENFOLD_STALL_TIMEOUT": "300"}
    with fake(log, "hangs", **more) as running, contextlib.ExitStack() as stack:
        for count in range(1, 5):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            connection.sendall(REQUEST)
            eventually(
                lambda count=count: metric(running, 'tenfold_pictures_under_way{model="fake-net"}') == count,  # type: ignore[misc]
                f"{count} are admitted",
            )
        for _ in range(8):
            with running.client() as client:
                response = client.post("/predict", content=image_file())
            assert (response.status_code, response.json()["type"]) == (503, "urn:tenfold:queue-full")
            assert int(response.headers["Retry-After"]) >= 1
        running.popen.send_signal(signal.SIGINT)
        running.popen.send_signal(signal.SIGINT)


@pytest.mark.parametrize(
    ("settings", "cpus", "cuda", "expected"),
    [
        ({"workers": "auto"}, 1, False, 1),
        ({"workers": "auto"}, 7, False, 1),
        ({"workers": "auto"}, 8, False, 2),
        ({"workers": "auto"}, 64, False, 16),
        ({"workers": 3}, 64, True, 3),
        ({"workers": "auto"}, 1, True, 1),
        ({"workers": "auto"}, 16, True, 15),
        ({"workers": "auto"}, 64, True, 16),
        ({"workers": "auto", "device": "cuda"}, 8, False, 7),
        ({"workers": "auto", "device": "cpu"}, 8, True, 2),
    ],
)
def test_auto_chooses_the_number_of_fronts(
    settings: dict[str, object], cpus: int, cuda: bool, expected: int, tmp_path: Path
) -> None:
    if cuda:
        (tmp_path / "cuda").touch()
    assert front_count(Settings.model_validate(settings), cpus, tmp_path / "cuda") == expected


def test_each_front_has_a_share_of_the_limits_that_suffices_for_one_request() -> None:
    assert shares(Settings(), 4, 8) == {
        "TENFOLD_MAX_UPLOADS": 64,
        "TENFOLD_MAX_HELD_BYTES": 62_500_000,
        "TENFOLD_MAX_DECODE_BYTES": 90_000_000,
        "TENFOLD_DECODE_THREADS": 2,
    }
    small = shares(Settings(max_uploads=2), 16, 4)
    assert (small["TENFOLD_MAX_UPLOADS"], small["TENFOLD_MAX_HELD_BYTES"]) == (1, 40_000_000)
