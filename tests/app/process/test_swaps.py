"""Swaps of weights in real processes, under load and with processes that are killed."""

import asyncio
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import model
from benchmarks.soak.tally import equivalent, percentile, predictions_of
from benchmarks.soak.wire import NoResponse, Pool
from model.bundle import update_bundle
from model.calibration import softmax
from model.card import ModelCard, read_card
from tests.app.fakes import image_file
from tests.app.process.test_fronts import children, metric, wait_ready
from tests.app.process.test_main_process import environment
from tests.app.running import ROOT, Process, eventually, process
from tests.memory import anonymous

CONNECTIONS = 32
IMAGES = [image_file(seed) for seed in range(16)]
KEY = {"X-API-Key": "admin"}
NAME = "resnet18-cifar10"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, with another temperature, corrupt, and with other labels. Tests must not change them."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("a", "b", "corrupt", "labels"):
        shutil.copytree(ROOT / "weights" / NAME, root / name)
    update_bundle(root / "b", {}, with_temperature(read_card(root / "b" / model.CARD_FILE), 4.0))
    (root / "corrupt" / "openvino.bin").write_bytes(b"0")
    card = json.loads((root / "labels" / "card.json").read_text(encoding="utf-8"))
    card["labels"][:2] = card["labels"][1::-1]
    (root / "labels" / "card.json").write_text(json.dumps(card), encoding="utf-8")
    return root


def with_temperature(card: ModelCard, temperature: float) -> ModelCard:
    """The card of the same weights with another temperature, and with self-tests that agree."""
    content = card.model_dump()
    content["calibration"]["temperature"] = temperature
    for part in (content, content["openvino"], content["onnx"]):
        if part:
            test = part["self_test"]
            exponent = content["calibration"]["exponent"]
            test["probabilities"] = softmax(np.array(test["logits"], np.float32), temperature, exponent).tolist()
    return ModelCard.model_validate(content)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def settings(weights: Path, workers: int = 1, **more: str) -> dict[str, str]:
    return environment(
        weights,
        TENFOLD_ADMIN_KEYS="admin",
        TENFOLD_WORKERS=str(workers),
        TENFOLD_TIMEOUT="60",
        TENFOLD_QUEUE_SIZE="1000",
        **more,
    )


def version_of(bundle: Path) -> str:
    return model.read_card(bundle / model.CARD_FILE).version


def change(service: Process, path: str = "", **body: Any) -> httpx.Response:
    """Send an order on a connection of its own."""
    with service.client() as client:
        return client.post(f"/models/{NAME}{path}", json=body, headers=KEY, timeout=120)


def versions(service: Process, requests: int = 20) -> set[str]:
    """The versions that answer, on connections of their own."""
    found = set()
    for _ in range(requests):
        with service.client() as client:
            response = client.post("/predict", content=IMAGES[0])
            assert response.status_code == 200
            found.add(response.json()["model"]["version"])
    return found


def request_for(image: bytes) -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(image)}\r\n\r\n"
    return head.encode() + image


@dataclass
class Load:
    """Requests on 32 connections, from a thread of its own.

    Attributes:
        references: version -> predictions for each image by this version without load.
        latencies: when each response came (time.monotonic), and the seconds that it took.
        versions: number of responses of each version.
        problems: number of lost, refused and wrong ones.
    """

    port: int
    references: dict[str, list[Any]]
    latencies: list[tuple[float, float]] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    stopped: bool = False

    async def run(self) -> None:
        pool = Pool(self.port, 120)
        await asyncio.gather(*(self._visit(pool, number) for number in range(CONNECTIONS)))
        pool.close()

    async def _visit(self, pool: Pool, number: int) -> None:
        while not self.stopped:
            number = (number + 1) % len(IMAGES)
            began = time.monotonic()
            try:
                response = await pool.send(request_for(IMAGES[number]))
            except NoResponse as error:
                self.problems[f"lost: {error}"] += 1
                continue
            if response.status != 200:
                self.problems[f"status {response.status}"] += 1
                continue
            self.latencies.append((time.monotonic(), time.monotonic() - began))
            version = json.loads(response.body)["model"]["version"]
            self.versions[version] += 1
            if not equivalent(self.references[version][number], predictions_of(response)):
                self.problems["wrong"] += 1

    def p99(self, since: float, until: float) -> float:
        """Seconds of the 99th percentile of the responses in a period."""
        return percentile([seconds for at, seconds in self.latencies if since <= at < until], 99)


async def measure(port: int) -> list[Any]:
    """The predictions for each image, one request after the other."""
    pool = Pool(port, 120)
    found = [predictions_of(await pool.send(request_for(image))) for image in IMAGES]
    pool.close()
    return found


@contextmanager
def load(service: Process, root: Path) -> Iterator[Load]:
    """Load, with the references of the bundles a, which is served, and b."""
    references = {}
    for name in ("b", "a"):
        assert change(service, weights=name).status_code == 200
        references[version_of(root / name)] = asyncio.run(measure(service.port))
    assert not equivalent(*references.values()), "the answers tell the versions apart"
    running = Load(service.port, references)
    thread = threading.Thread(target=lambda: asyncio.run(running.run()))
    thread.start()
    try:
        eventually(lambda: len(running.latencies) > 2 * CONNECTIONS, "requests are answered", seconds=120)
        yield running
    finally:
        running.stopped = True
        thread.join(120)
    assert not thread.is_alive()


def swaps_under_load(root: Path, log: Path, *, workers: int, swaps: int, quiet: float) -> None:
    with process(settings(root / "a", workers), log) as service:
        wait_ready(service, workers)
        with load(service, root) as running:
            began = time.monotonic()
            time.sleep(quiet)
            swapping = time.monotonic()
            for number in range(swaps):
                report = change(service, weights="ba"[number % 2])
                assert report.status_code == 200, report.text
            ended = time.monotonic()
        before, during = running.p99(began, swapping), running.p99(swapping, ended)
        print(
            f"{workers} processes, {swaps} swaps in {ended - swapping:.1f} s, {len(running.latencies)} requests, "
            f"p99 {before * 1000:.0f} ms before and {during * 1000:.0f} ms during the swaps"
        )
        assert not running.problems
        assert len(running.versions) == 2
        service.popen.send_signal(signal.SIGTERM)
        assert service.exit_code() == 0
        assert "Traceback" not in service.log


def test_swaps_under_load_lose_nothing_and_every_answer_is_that_of_its_version(bundles: Path, log: Path) -> None:
    swaps_under_load(bundles, log, workers=1, swaps=3, quiet=0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [1, 3])
def test_fifty_swaps_under_load_lose_nothing_and_every_answer_is_that_of_its_version(
    bundles: Path, log: Path, workers: int
) -> None:
    swaps_under_load(bundles, log, workers=workers, swaps=50, quiet=20)


def test_sighup_loads_the_folder_again_and_a_bundle_that_is_corrupt_is_not_served(bundles: Path, log: Path) -> None:
    folder = log.parent / "served"
    shutil.copytree(bundles / "a", folder)
    old, new = (version_of(bundles / name) for name in ("a", "b"))
    with process(settings(folder), log) as service:
        service.wait_ready()
        shutil.copytree(bundles / "b", folder, dirs_exist_ok=True)  # overwritten in place
        assert versions(service, 1) == {old}
        service.popen.send_signal(signal.SIGHUP)
        service.wait_logged(f"swapped, version {new}")
        assert versions(service, 1) == {new}
        (folder / "openvino.bin").write_bytes(b"0")
        service.popen.send_signal(signal.SIGHUP)
        service.wait_logged(f"{NAME}: no swap (refused)")
        assert versions(service, 1) == {new}
        assert change(service, "/rollback").json()["version"] == old
        assert versions(service, 1) == {old}


@pytest.mark.slow
def test_all_fronts_use_new_weights_at_once_and_an_engine_process_that_starts_later_loads_them(
    bundles: Path, log: Path
) -> None:
    old, new = (version_of(bundles / name) for name in ("a", "b"))
    chosen = settings(bundles / "a", 2)
    chosen["TENFOLD_MODELS"] = chosen.pop("TENFOLD_WEIGHTS")
    with process(chosen, log) as service:
        wait_ready(service)
        assert change(service, weights="b").json()["version"] == new
        assert versions(service) == {new}
        with service.client() as client:
            shown = re.findall(r'^tenfold_model_info.*version="(\w+)"', client.get("/metrics").text, re.MULTILINE)
        assert shown == [new]
        os.kill(children(service, "front")[0], signal.SIGKILL)
        assert change(service, weights="a").json()["version"] == old, "while a front is started again"
        assert versions(service) == {old}
        assert change(service, weights="b").json()["version"] == new
        (engine,) = children(service, "engine")
        os.kill(engine, signal.SIGKILL)
        eventually(lambda: engine not in children(service, "engine"), "it has ended")
        wait_ready(service)
        assert versions(service) == {new}
        assert change(service, "/rollback").status_code == 409, "the new process keeps no earlier version"
        assert change(service, weights="a").json()["version"] == old
        assert change(service, "/rollback").json()["version"] == new
        assert versions(service) == {new}
        service.popen.send_signal(signal.SIGHUP)
        swapped = f'tenfold_swaps_total{{model="{NAME}",outcome="swapped"}}'
        eventually(lambda: metric(service, swapped) == 5, "SIGHUP loads the folder again", seconds=120)
        for weights in ("corrupt", "labels", "none"):
            assert change(service, weights=weights).status_code == 422
        assert versions(service) == {new}
        assert metric(service, f'tenfold_swaps_total{{model="{NAME}",outcome="refused"}}') == 3
        service.popen.send_signal(signal.SIGTERM)
        assert service.exit_code() == 0
        assert "Traceback" not in service.log


@pytest.mark.slow
def test_an_engine_process_that_is_killed_during_a_comparison_leaves_the_old_weights(bundles: Path, log: Path) -> None:
    old, new = (version_of(bundles / name) for name in ("a", "b"))
    with process(settings(bundles / "a", 2), log) as service:
        wait_ready(service)
        responses: list[httpx.Response] = []
        thread = threading.Thread(
            target=lambda: responses.append(change(service, weights="b", shadow=1, images=1000, seconds=3600))
        )
        thread.start()

        def status() -> str:
            with service.client() as client:
                found: str = client.get(f"/models/{NAME}/swap", headers=KEY).json()["state"]
            return found

        eventually(lambda: status() == "comparing", "the swap compares", seconds=120)
        assert change(service, weights="b").status_code == 409, "a second swap at once"
        (engine,) = children(service, "engine")
        os.kill(engine, signal.SIGKILL)
        thread.join(60)
        assert [response.status_code for response in responses] == [503]
        eventually(lambda: engine not in children(service, "engine"), "it has ended")
        wait_ready(service)
        assert status() == "none"
        assert versions(service) == {old}
        assert change(service, weights="b").json()["version"] == new
        assert versions(service) == {new}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_comparison_whose_client_has_left_can_be_ended(bundles: Path, log: Path, workers: int) -> None:
    old, new = (version_of(bundles / name) for name in ("a", "b"))
    with process(settings(bundles / "a", workers), log) as service, service.client() as client:
        wait_ready(service, workers)
        url = f"/models/{NAME}/swap"
        assert client.delete(url, headers=KEY).status_code == 409, "none is in progress"
        body = {"weights": "b", "shadow": 1, "images": 1000, "seconds": 86_400}
        with pytest.raises(httpx.ReadTimeout):
            client.post(f"/models/{NAME}", json=body, headers=KEY, timeout=0.1)
        service.wait_logged(f"{NAME}: comparing version {new} with {old}")
        assert change(service, weights="b").status_code == 409
        assert client.delete(url).status_code == 401
        response = client.delete(url, headers=KEY)
        assert response.status_code == 200, response.text
        report = response.json()
        assert (report["action"], report["state"], report["version"]) == ("swap", "refused", new)
        assert report["reason"] == "a client has ended the swap"
        service.wait_logged(f"{NAME}: no swap (refused): a client has ended the swap")
        assert versions(service) == {old}
        assert change(service, weights="b").json()["version"] == new
        assert versions(service) == {new}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_returns_after_ten_swaps(log: Path) -> None:
    """With the shipped weights, and requests between the swaps."""
    with process(settings(ROOT / "weights" / NAME), log) as service:
        service.wait_ready()

        def swap() -> None:
            assert change(service).status_code == 200
            assert len(versions(service, 3)) == 1

        before = anonymous(service.popen.pid)
        swap()
        held = anonymous(service.popen.pid)
        for _ in range(9):
            swap()
        assert change(service, "/confirm").status_code == 200
        limit = 1.1 * before
        found = f"{before / 1e6:.0f} MB at first, {held / 1e6:.0f} MB after a swap that is not confirmed"
        eventually(lambda: anonymous(service.popen.pid) < limit, f"memory returns: {found}")
        print(f"{found}, {anonymous(service.popen.pid) / 1e6:.0f} MB after ten swaps and a confirmation")
