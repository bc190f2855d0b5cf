"""The container of docker-compose.yml: it has few rights and restarts after a crash."""

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.app.running import ROOT

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # the image may have to be built
    pytest.mark.skipif(os.environ.get("TENFOLD_DOCKER") != "1", reason="TENFOLD_DOCKER=1 is not set"),
]

PROJECT = "tenfold-test"
URL = "http://127.0.0.1:8000"


def run(*command: str, check: bool = True) -> str:
    """Run a command and return its output."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


def compose() -> list[str]:
    """The command of Docker Compose: the plugin, or the program of its first version."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode == 0:
        return ["docker", "compose", "-p", PROJECT]
    assert shutil.which("docker-compose"), "there is no Docker Compose"
    return ["docker-compose", "-p", PROJECT]


def is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def wait(condition: Callable[[], bool], what: str, *, seconds: float = 180.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)


def inspect(container: str) -> dict[str, Any]:
    (content,) = json.loads(run("docker", "inspect", container))
    assert isinstance(content, dict)
    return content


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    """The id of the service's container, once it is ready."""
    assert not is_ready(), "another service uses the port"
    try:
        run(*compose(), "up", "-d", "--build")
        wait(is_ready, "the container is ready")
        yield run(*compose(), "ps", "-q", "tenfold")
    finally:
        run(*compose(), "down", "--timeout", "40", check=False)


def test_only_the_service_starts_without_the_profile(container: str) -> None:
    assert run(*compose(), "ps", "-q").splitlines() == [container]


def test_the_process_has_no_capabilities(container: str) -> None:
    status = dict(
        line.split(":\t", 1) for line in run("docker", "exec", container, "cat", "/proc/1/status").splitlines()
    )
    assert set(status["Uid"].split()) == {"10001"}
    assert "0" not in status["Gid"].split()
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"


def test_the_container_is_restricted(container: str) -> None:
    content = inspect(container)
    assert content["Config"]["User"] == "10001"
    host = content["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    ports = [binding["HostIp"] for bindings in host["PortBindings"].values() for binding in bindings]
    assert ports == ["127.0.0.1"]


def test_only_tmp_is_writable(container: str) -> None:
    program = """
import errno
for folder in ("/", "/srv/tenfold", "/srv/tenfold/weights", "/opt/venv", "/var/tmp"):
    try:
        open(folder + "/file", "w")
    except OSError as error:
        assert error.errno == errno.EROFS, (folder, error)
    else:
        raise AssertionError(folder)
open("/tmp/file", "w").close()
"""
    run("docker", "exec", container, "python", "-c", program)


def test_the_health_check_passes(container: str) -> None:
    wait(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy", "it is healthy")


def test_the_image_is_small_and_sends_no_usage_data(container: str) -> None:
    size = int(run("docker", "image", "inspect", inspect(container)["Image"], "--format", "{{.Size}}"))
    assert size < 600e6
    names = "'openvino', 'openvino_telemetry', 'torch', 'nncf'"
    program = f"import importlib.util as u; print([name for name in ({names}) if u.find_spec(name)])"
    assert run("docker", "exec", container, "python", "-c", program) == "['openvino']"


def test_the_command_is_installed(container: str) -> None:
    output = run("docker", "exec", "--workdir", "/tmp", container, "tenfold", "--help")
    assert "classify" in output


def test_it_serves_with_little_memory(container: str, cat_jpeg: bytes) -> None:
    with httpx.Client(base_url=URL, timeout=30) as client:
        for _ in range(100):
            response = client.post("/predict", files={"file": ("cat.jpg", cat_jpeg)})
            assert response.json()["results"][0]["top_k"][0]["label"] == "cat"
    status = run("docker", "exec", container, "cat", "/proc/1/status")
    (kilobytes,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
    assert kilobytes < 400_000


def test_it_restarts_after_a_crash(container: str) -> None:
    """The process is killed from the host's process namespace.

    After `docker kill` Docker would not restart it, and inside the container the kernel ignores SIGKILL for process 1.
    A second container in the host's process namespace can send it, wherever the engine runs.
    """
    before = inspect(container)
    pid, began, restarts = before["State"]["Pid"], before["State"]["StartedAt"], before["RestartCount"]
    image = before["Image"]
    run(
        *("docker", "run", "--rm", "--pid", "host", "--user", "0", "--network", "none", "--entrypoint", "python"),
        *(image, "-c", f"import os, signal; os.kill({pid}, signal.SIGKILL)"),
    )

    wait(lambda: inspect(container)["RestartCount"] == restarts + 1, "Docker restarts it")
    wait(is_ready, "it is ready again")
    after = inspect(container)
    assert after["State"]["StartedAt"] != began
    assert after["State"]["Running"] is True
    assert after["Id"] == before["Id"], "the same container"
