"""The service in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from app.settings import Settings
from benchmarks.soak.clients import ServiceError

_LISTENING = re.compile(rb"Uvicorn running on http://127\.0\.0\.1:(\d+)")
_START_TIMEOUT = 180.0


class ServiceProcess:
    """`python -m app` on a free port, with the other settings from the environment. It is killed at the latest on exit.

    Attributes:
        port: its port.
        settings: its settings.

    Args:
        bundles: folders of the models. The first one is the default.
        log: file for its output.
        settings: that differ from the environment, for example a fixed port.

    Raises:
        ServiceError: it exits or does not listen.
    """

    def __init__(self, bundles: Sequence[Path], log: Path, **settings: Any) -> None:
        settings = {"host": "127.0.0.1", "port": 0, "models": ",".join(map(str, bundles)), **settings}
        self._environment = {name: value for name, value in os.environ.items() if name != "TENFOLD_WEIGHTS"}
        self._environment.update({f"TENFOLD_{name.upper()}": str(value) for name, value in settings.items()})
        self.settings = Settings(**settings)
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self._process = self._start(file)
        try:
            self.port = self._wait_listening()
        except BaseException:
            self._process.kill()
            raise

    def __enter__(self) -> "ServiceProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    @property
    def ended(self) -> bool:
        """Whether it has exited."""
        return self._process.poll() is not None

    def memory(self) -> tuple[float, float] | None:
        """Current and peak resident memory in MiB; None without /proc or after it has exited."""
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        except OSError:
            return None
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.MULTILINE))
        return (int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024) if len(found) == 2 else None

    def cpu_seconds(self) -> float:
        """CPU time that it has used so far, of all its threads.

        Raises:
            ServiceError: it has exited, or there is no /proc.
        """
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        except OSError as error:
            raise ServiceError(f"the CPU time of the service is not known: see {self.log}") from error
        # utime and stime: see proc(5).
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def terminate(self) -> int | None:
        """Send SIGTERM. Returns the exit code, or None if it does not exit."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(self.settings.drain_delay + self.settings.drain_timeout + 10)
        except subprocess.TimeoutExpired:
            return None

    def error_messages(self, count: int = 20) -> list[str]:
        """The last lines of its log that contain an error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if re.search(r"error|traceback|exception", line, re.IGNORECASE)][-count:]

    def _start(self, file: BinaryIO) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "app"], env=self._environment, stdout=file, stderr=subprocess.STDOUT
        )

    def _wait_listening(self) -> int:
        ends = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < ends and self._process.poll() is None:
            if found := _LISTENING.search(self.log.read_bytes()):
                return int(found[1])
            time.sleep(0.05)
        raise ServiceError(f"the service does not listen: see {self.log}")
