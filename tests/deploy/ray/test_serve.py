"""The service on Ray Serve."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.running import ROOT

pytest.importorskip("ray", reason="Ray is not installed: run make ray")

REQUESTS = 300


@pytest.mark.ray
@pytest.mark.slow
def test_no_request_is_lost_if_a_replica_dies_or_their_number_changes(
    tiny_bundle: Path, cat_png: bytes, tmp_path: Path
) -> None:
    image = tmp_path / "cat.png"
    image.write_bytes(cat_png)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "tests.deploy.ray.replicas",
        str(tiny_bundle),
        str(image),
        str(port),
        str(REQUESTS),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)
    if "timed out during startup" in ended.stderr:
        pytest.skip("Ray did not start within its fixed time limit: this machine is too busy")
    assert ended.returncode == 0, ended.stderr
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith('{"killed"'))
    result = json.loads(line)
    assert result["killed"] == {"200": REQUESTS}
    assert result["scaled"] == {"200": REQUESTS}
    assert result["counts"][0] == 3
    assert result["ready"] == {"status": "ready"}
