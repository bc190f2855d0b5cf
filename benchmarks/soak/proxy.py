"""HAProxy in front of several services."""

import contextlib
import csv
import io
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from benchmarks.soak.clients import ServiceError

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "compose" / "haproxy.cfg"

# Seconds for a replica to become ready.
READY_TIMEOUT = 180.0


class Proxy:
    """HAProxy with the configuration of docker-compose.yml, on a free port.

    Attributes:
        port: its port.

    Args:
        ports: of the replicas. Those that do not listen are not used.
        retries: how often it tries again to connect.

    Raises:
        ServiceError: HAProxy is not installed or does not start.
    """

    def __init__(self, ports: Sequence[int], *, retries: int) -> None:
        program = shutil.which("haproxy")
        if program is None:
            raise ServiceError("haproxy is not installed: install the package haproxy of Debian")
        self.port, self._statistics = free_ports(2)
        self._folder = tempfile.TemporaryDirectory()
        backend = Path(self._folder.name, "replicas.cfg")
        servers = "".join(f"    server {port} 127.0.0.1:{port}\n" for port in ports)
        backend.write_text(f"backend replicas\n{servers}", encoding="utf-8")
        log = Path(self._folder.name, "log")
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [program, "-db", "-f", str(CONFIGURATION), "-f", str(backend)],
                env={
                    **os.environ,
                    "PROXY_ADDRESS": f"127.0.0.1:{self.port}",
                    "PROXY_STATISTICS": f"127.0.0.1:{self._statistics}",
                    "PROXY_RETRIES": str(retries),
                },
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_listening(log)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def statistics(self) -> dict[str, dict[str, str]]:
        """HAProxy's counters of each replica, by its port."""
        text = httpx.get(f"http://127.0.0.1:{self._statistics}/;csv", timeout=10).text
        rows = csv.DictReader(io.StringIO(text.removeprefix("# ")))
        return {row["svname"]: row for row in rows if row["pxname"] == "replicas" and row["svname"] != "BACKEND"}

    def wait_checked(self, up: Sequence[int], down: Sequence[int] = ()) -> None:
        """Wait until it sends requests to the replicas on some ports and to none on others.

        HAProxy takes a server that it has not checked yet for one that works.

        Raises:
            ServiceError: it does not.
        """
        expected = {str(port): state for state, ports in (("UP", up), ("DOWN", down)) for port in ports}
        ends = time.monotonic() + READY_TIMEOUT
        while True:
            rows = self.statistics()
            if all(rows[port]["status"] == state and rows[port]["check_status"] for port, state in expected.items()):
                return
            if time.monotonic() > ends:
                raise ServiceError(f"the proxy does not use the replicas on the ports {', '.join(map(str, up))} only")
            time.sleep(0.1)

    def retries(self) -> int:
        """How often it tried again to connect to a replica."""
        return sum(int(row["wretr"]) for row in self.statistics().values())

    def _wait_listening(self, log: Path) -> None:
        ends = time.monotonic() + 20
        while self._process.poll() is None and time.monotonic() < ends:
            with contextlib.suppress(httpx.HTTPError):
                self.statistics()
                return
            time.sleep(0.05)
        raise ServiceError(f"haproxy does not start: {log.read_text(encoding='utf-8').strip()}")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(each.getsockname()[1]) for each in sockets]
