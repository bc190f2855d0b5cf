"""The memory of the service with default limits, whatever is sent to it: all its processes together."""

import contextlib
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.settings import Settings
from tests.app.running import ROOT, eventually, process
from tests.hostile import HEAVY
from tests.memory import anonymous, total_peak

LIMIT = 900_000_000
CONNECTIONS = 8

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]


def unfinished_upload(port: int, size: int) -> socket.socket:
    """A connection that has sent a body of this size except the last byte."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n\r\n"
    connection.sendall(head.encode() + bytes(size - 1))
    return connection


@pytest.mark.timeout(900)
def test_memory_stays_within_its_limit_for_hostile_images_and_unfinished_uploads(tmp_path: Path) -> None:
    settings = Settings()
    # Longer than the default, because the machine may be busy: the memory does not depend on it.
    environment = {"TENFOLD_PORT": "0", "TENFOLD_DEVICE": "cpu", "TENFOLD_TIMEOUT": "300"}
    files = [heavy.make() for heavy in HEAVY]
    with (
        process({**environment, "TENFOLD_WEIGHTS": str(ROOT / settings.weights)}, tmp_path / "log") as running,
        running.client() as client,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(CONNECTIONS + 1) as senders,
    ):
        client.timeout = 400
        running.wait_ready()
        ready = anonymous(running.popen.pid)
        held = settings.max_held_bytes - settings.max_body_bytes
        for _ in range(held // settings.max_body_bytes):
            stack.enter_context(unfinished_upload(running.port, settings.max_body_bytes))
        eventually(lambda: anonymous(running.popen.pid) > ready + 0.9 * held, "the uploads are in memory", seconds=120)
        answers = senders.map(lambda data: client.post("/predict", content=data).status_code, files)
        sent = senders.submit(lambda: Counter(answers))
        highest = 0
        while not sent.done():
            highest = max(highest, total_peak(running.popen.pid))
            time.sleep(0.02)
        statuses = sent.result()
        print(f"memory {ready / 1e6:.0f} MB, at most {highest / 1e6:.0f} MB; responses {dict(statuses)}")
        assert set(statuses) <= {200, 413, 422, 503, 504}
        assert statuses[200] > 0
        assert highest < LIMIT
        assert client.get("/readyz").status_code == 200
