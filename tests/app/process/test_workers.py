"""TENFOLD_WORKERS: several processes on one socket, with a real bundle."""

import contextlib
import os
import re
import signal
import sqlite3
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from app.feedback.store import Store
from model import read_card
from tests.app.fakes import image_file
from tests.app.http.routes.test_v2 import images
from tests.app.process.test_main_process import environment
from tests.app.running import Pending, Process, Visitor, eventually, process

pytestmark = pytest.mark.slow

CLIENTS = 32


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def two_workers(weights: Path, **more: str) -> dict[str, str]:
    return environment(weights, TENFOLD_WORKERS="2", **more)


def metric(service: Process, name: str) -> float:
    with service.client() as client:
        found = re.search(rf"^{re.escape(name)} ([\d.e+]+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def children(service: Process) -> list[int]:
    ids = Path(f"/proc/{service.popen.pid}/task/{service.popen.pid}/children").read_text(encoding="utf-8")
    return [int(each) for each in ids.split()]


def runs(process_id: int) -> bool:
    """Whether the process exists and is not a zombie, which an orphan may stay in a container."""
    try:
        stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_sigterm_under_load_loses_nothing_and_the_metrics_are_of_all_of_them(int8_bundle: Path, log: Path) -> None:
    with process(two_workers(int8_bundle, TENFOLD_DRAIN_DELAY="1.5", TENFOLD_TIMEOUT="60"), log) as running:
        running.wait_logged("serving tiny", 2)
        assert metric(running, "tenfold_ready") == 2
        visitors = [Visitor(running.port) for _ in range(CLIENTS)]
        eventually(lambda: all(len(visitor.responses) > 3 for visitor in visitors), "all are served", seconds=120)
        answered = sum(len(visitor.responses) for visitor in visitors)
        counted = metric(running, 'tenfold_pictures_total{model="tiny",outcome="answered"}')
        assert answered <= counted <= sum(len(visitor.responses) for visitor in visitors) + CLIENTS
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0
        for visitor in visitors:
            visitor.join()
            assert isinstance(visitor.ended, httpx.ConnectError), f"a request was lost: {visitor.ended!r}"
            assert {status for _, status, _ in visitor.responses} == {200}
        assert "Traceback" not in running.log


def test_a_worker_that_is_killed_is_replaced(int8_bundle: Path, log: Path) -> None:
    with process(two_workers(int8_bundle), log) as running:
        running.wait_logged("serving tiny", 2)
        before = children(running)
        assert len(before) == 2
        with running.client() as client:
            client.post("/predict", content=image_file())
        os.kill(before[0], signal.SIGKILL)
        running.wait_logged("serving tiny", 3)
        after = children(running)
        assert len(after) == 2
        assert before[1] in after
        eventually(lambda: metric(running, "tenfold_ready") == 2, "the killed worker is not counted")
        assert metric(running, 'tenfold_pictures_total{model="tiny",outcome="answered"}') == 1, (
            "its requests are counted"
        )
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0


def test_a_worker_that_cannot_load_the_model_ends_the_service(tmp_path: Path, log: Path) -> None:
    with process(two_workers(tmp_path / "none"), log) as running:
        assert running.exit_code() == 1
        assert "name a weights folder" in running.log


def test_workers_do_not_outlive_their_supervisor(int8_bundle: Path, log: Path) -> None:
    with process(two_workers(int8_bundle), log) as running:
        running.wait_logged("serving tiny", 2)
        orphans = children(running)
        running.popen.send_signal(signal.SIGKILL)
        eventually(lambda: not any(map(runs, orphans)), "they have ended", seconds=60)


def test_workers_do_not_outlive_a_supervisor_that_dies_while_they_start(int8_bundle: Path, log: Path) -> None:
    with process(two_workers(int8_bundle), log) as running:
        eventually(lambda: len(children(running)) == 2, "two workers have been started", seconds=120)
        orphans = children(running)
        running.popen.send_signal(signal.SIGKILL)
        eventually(lambda: not any(map(runs, orphans)), "they have ended", seconds=60)


def test_a_port_that_is_taken_ends_it(int8_bundle: Path, log: Path) -> None:
    with process(two_workers(int8_bundle), log) as running:
        began = time.monotonic()
        with process(two_workers(int8_bundle, TENFOLD_PORT=str(running.port)), log.with_name("second")) as second:
            assert second.exit_code() == 1
            assert "address already in use" in second.log.lower()
            assert "choose another address with TENFOLD_HOST and TENFOLD_PORT" in second.log
        assert time.monotonic() - began < 60


def test_the_statistics_of_the_open_inference_protocol_are_of_all_of_them(int8_bundle: Path, log: Path) -> None:
    request = images(image_file())
    with process(two_workers(int8_bundle), log) as running:
        running.wait_logged("serving tiny", 2)
        for _ in range(20):
            with running.client() as client:  # a connection of its own, for either process
                assert client.post("/v2/models/tiny-image/infer", json=request).status_code == 200
        for _ in range(10):
            with running.client() as client:
                (found,) = client.get("/v2/models/tiny/stats").json()["model_stats"]
            assert found["inference_count"] == found["inference_stats"]["success"]["count"] == 20
            assert found["inference_stats"]["success"]["ns"] > 0
            assert found["last_inference"] > 0


def test_the_drift_is_that_of_the_images_of_all_of_them(int8_bundle: Path, log: Path) -> None:
    with process(two_workers(int8_bundle, TENFOLD_DRIFT_MIN_IMAGES="30"), log) as running:
        running.wait_logged("serving tiny", 2)
        first, second = children(running)
        for stopped, images in ((first, 20), (second, 12)):
            os.kill(stopped, signal.SIGSTOP)
            with running.client() as client:  # of the other worker
                for _ in range(images):
                    assert client.post("/predict", content=image_file()).status_code == 200
            os.kill(stopped, signal.SIGCONT)

        def reported(images: int) -> bool:
            with running.client() as client:
                reports = [client.get("/drift", headers={"Connection": "close"}).json() for _ in range(8)]
            return all((found["workers"], found["models"][0]["images"]) == (2, images) for found in reports)

        eventually(lambda: reported(32), "each worker reports the images of both")
        assert metric(running, 'tenfold_drift_psi{distribution="confidence",model="tiny"}') > 1
        os.kill(first, signal.SIGKILL)
        running.wait_logged("serving tiny", 3)
        eventually(lambda: reported(20), "the images of the worker that has ended do not count")


def test_a_label_may_be_sent_to_another_worker_than_the_image(int8_bundle: Path, log: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with process(two_workers(int8_bundle, TENFOLD_FEEDBACK=str(store)), log) as running:
        running.wait_logged("serving tiny", 2)
        label = read_card(int8_bundle / "card.json").labels[0]
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(running.client()) for _ in range(8)]

            def predict(client: httpx.Client) -> str:
                return client.post("/predict", content=image_file()).headers["X-Request-ID"]

            def labelled(client: httpx.Client, request_id: str) -> httpx.Response:
                return client.post("/feedback", json={"request_id": request_id, "label": label})

            ids = [predict(client) for client in clients[1:]]
            assert {labelled(client, each).status_code for client in clients for each in ids} == {200}
            with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as database:
                database.execute("BEGIN IMMEDIATE")  # no worker can write
                ids.append(predict(clients[0]))
                sent = [Pending(partial(labelled, client, ids[-1])) for client in clients]
                time.sleep(0.2)
                database.execute("ROLLBACK")
            assert {each.result().status_code for each in sent} == {200}, "each looks again until it is stored"
            assert (
                sum(
                    metric(running, f'tenfold_feedback_total{{model="tiny",outcome="{outcome}"}}')
                    for outcome in ("right", "wrong")
                )
                == 8
            )
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0
    with Store(store, create=False) as opened:
        assert sorted(row.request_id for row in opened.labelled()) == sorted(ids)
