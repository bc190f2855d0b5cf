"""How the service starts and where it listens, as real processes."""

import contextlib
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from tests.app.fakes import image_file
from tests.app.running import ROOT, Process, eventually, process
from tests.shipped import SHIPPED

FAKE = ["-m", "tests.app.fake_service", "works"]
SETTINGS = {"TENFOLD_DRAIN_DELAY": "0", "TENFOLD_THREADS": "1"}
# As Compose passes ${VARIABLE:-}.
EMPTY = dict.fromkeys(
    ("TENFOLD_HOST", "TENFOLD_FEEDBACK", "TENFOLD_WEIGHTS_ROOT", "TENFOLD_TIMEOUT", "TENFOLD_MODELS", "TENFOLD_UDS"), ""
) | dict.fromkeys(("WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS", "PROMETHEUS_MULTIPROC_DIR"), "")
WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def healthy(environment: Mapping[str, str], port: int = 0) -> bool:
    """Whether the health check of the container succeeds, with a proxy that does not exist."""
    variables = {**environment, "http_proxy": "http://127.0.0.1:1", "PATH": os.environ["PATH"]}
    if port:
        variables["TENFOLD_PORT"] = str(port)
    command = [sys.executable, "-m", "app.process.healthcheck"]
    return subprocess.run(command, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL, check=False).returncode == 0


@contextlib.contextmanager
def client_of(path: Path) -> Iterator[httpx.Client]:
    """A client of the service on a Unix socket."""
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://tenfold", timeout=30) as client:
        yield client


def wait_ready(path: Path, running: Process) -> None:
    """Wait until the service on a Unix socket is ready."""

    def ready() -> bool:
        assert running.popen.poll() is None, running.log
        with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
            connection.connect(str(path))
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n")
            return connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        return False

    eventually(ready, "it is ready", seconds=120)


@WORKERS
def test_it_listens_on_a_unix_socket(workers: str, log: Path, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    settings = {**SETTINGS, "TENFOLD_UDS": str(path), "TENFOLD_WORKERS": workers}
    with process(settings, log, arguments=FAKE) as running, client_of(path) as client:
        running.wait_logged(f"running on unix socket {path}")
        eventually(lambda: client.get("/readyz").status_code == 200, "it is ready", seconds=60)
        assert client.post("/predict", content=image_file()).status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert healthy(settings)
        with process(settings, log.with_name("second"), arguments=FAKE) as second:
            assert second.exit_code() == 1
        assert f"cannot listen on {path} (another process listens on this socket): choose another path" in second.log
        assert client.get("/livez").status_code == 200
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0
    assert not path.exists()
    assert not healthy(settings)
    assert "Traceback" not in running.log


def test_a_file_in_the_place_of_a_unix_socket_is_not_replaced(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious", encoding="utf-8")
    with process({"TENFOLD_UDS": str(path)}, log, arguments=FAKE) as running:
        assert running.exit_code() == 1
    assert "this file is not a socket" in running.log
    assert path.read_text(encoding="utf-8") == "precious"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
@WORKERS
def test_all_interfaces_are_those_of_ipv6_and_ipv4(workers: str, log: Path) -> None:
    settings = {**SETTINGS, "TENFOLD_HOST": "::", "TENFOLD_PORT": "0", "TENFOLD_WORKERS": workers}
    with process(settings, log, arguments=FAKE) as running:
        running.wait_ready()
        for host in ("127.0.0.1", "[::1]"):
            assert httpx.get(f"http://{host}:{running.port}/readyz").status_code == 200
        assert healthy(settings, running.port)
        assert healthy({"TENFOLD_HOST": "0.0.0.0"}, running.port)
        assert healthy({"TENFOLD_HOST": ""}, running.port)
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0


@pytest.mark.skipif(not SHIPPED, reason="there is no bundle in weights/")
@pytest.mark.parametrize("closed", ["<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_it_needs_no_standard_streams_and_ignores_empty_variables(
    workers: str, closed: str, log: Path, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    settings = {**EMPTY, **SETTINGS, "TENFOLD_UDS": str(path), "TENFOLD_WORKERS": workers}
    settings |= {"TENFOLD_WEIGHTS": f" {SHIPPED[-1]}\r", "TENFOLD_ENGINE": "Auto", "TENFOLD_DEVICE": "CPU"}
    program = f"import os; os.execvp('sh', ['sh', '-c', 'exec {sys.executable} -m app {closed}'])"
    with process(settings, log, arguments=["-c", program]) as running:
        wait_ready(path, running)
        if workers == "1":
            with client_of(path) as client:
                assert "process_open_fds" in client.get("/metrics").text, "there is no folder for several processes"
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0


@pytest.mark.slow
@pytest.mark.skipif(not SHIPPED, reason="there is no bundle in weights/")
def test_all_processes_run_the_package_of_their_supervisor(log: Path, tmp_path: Path) -> None:
    package = tmp_path / "app"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print('this is not tenfold')\nraise SystemExit(1)", encoding="utf-8")
    settings = {**SETTINGS, "TENFOLD_PORT": "0", "TENFOLD_WORKERS": "2", "TENFOLD_WEIGHTS": str(SHIPPED[-1])}
    program = f"import sys; sys.path[0] = {str(ROOT)!r}; from app.__main__ import run; run([])"
    with process(settings, log, arguments=["-c", program], folder=tmp_path) as running:
        running.wait_ready()
        running.popen.send_signal(signal.SIGTERM)
        assert running.exit_code() == 0
    assert "this is not tenfold" not in running.log


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_connections_beyond_the_limit_of_open_files_are_refused_counted_and_logged(log: Path) -> None:
    limited = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (128, {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}))\n"
        f"os.execv(sys.executable, [sys.executable, *{FAKE}])"
    )
    settings = {**SETTINGS, "TENFOLD_PORT": "0", "TENFOLD_TIMEOUT": "60"}
    with process(settings, log, arguments=["-c", limited]) as running, contextlib.ExitStack() as stack:
        running.wait_ready()
        client = stack.enter_context(running.client())
        assert client.get("/livez").status_code == 200
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", running.port))) for _ in range(128)]
        running.wait_logged("connections are refused, because this process may open 128 files and connections at most")

        def refused() -> float:
            text = client.get("/metrics").text
            found = re.search(r"^tenfold_connections_refused_total ([\d.]+)$", text, re.MULTILINE)
            assert found, "a connection of before is served"
            return float(found[1])

        eventually(lambda: refused() >= 16, "refused connections are counted")
        received = []
        for connection in connections:
            connection.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                received.append(connection.recv(65536).partition(b"\r\n\r\n")[0].lower())
        answered = [head for head in received if head]
        assert len(answered) >= 16
        assert all(head.startswith(b"http/1.1 503 ") and b"retry-after: 1" in head for head in answered)
        assert client.post("/predict", content=image_file()).status_code == 200
        assert running.log.count("connections are refused") < 5
        for connection in connections:
            connection.close()
        eventually(
            lambda: httpx.get(f"http://127.0.0.1:{running.port}/livez").status_code == 200, "there is room again"
        )
