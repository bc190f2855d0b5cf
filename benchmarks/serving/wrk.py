"""wrk, which makes the load: one thread, so many connections, each posting again as soon as it is answered."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.servers import ServerError

_SCRIPT = Path(__file__).with_name("post.lua")
# Slower answers would count as lost. wrk keeps a counter for each microsecond of it, so it is no longer than needed.
_PATIENCE = 60


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one run.

    Attributes:
        requests: answered, whatever the status.
        seconds: that it took.
        p50: of the latencies in milliseconds, as wrk tells it; None if nothing was answered.
        p90: likewise.
        p99: likewise.
        refused: answers with a status of 400 and above.
        lost: connections that failed and answers that did not come.
    """

    requests: int
    seconds: float
    p50: float | None
    p90: float | None
    p99: float | None
    refused: int
    lost: int

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return (self.requests - self.refused) / self.seconds

    @property
    def errors(self) -> int:
        """Requests that were not answered well."""
        return self.refused + self.lost


def find_wrk() -> str:
    """Where wrk is.

    Raises:
        ServerError: nowhere.
    """
    path = shutil.which("wrk")
    if path is None:
        raise ServerError("wrk is not installed: apt install wrk")
    return path


def drive(url: str, content_type: str, bodies: Sequence[Path], *, connections: int, seconds: int) -> Load:
    """Post the bodies in rotation.

    Raises:
        ServerError: wrk is not installed, or fails.
    """
    command = [find_wrk(), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{_PATIENCE}s", "--script", str(_SCRIPT), url, "--", content_type, *map(str, bodies)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 2 * _PATIENCE)
    if ran.returncode:
        raise ServerError(f"wrk fails: {(ran.stderr or ran.stdout).strip()}")
    return parsed(ran.stdout)


def parsed(output: str) -> Load:
    """What wrk has printed: its own report, and our line of JSON at the end.

    Raises:
        ServerError: there is no such line.
    """
    line = output.rstrip().rpartition("\n")[2]
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ServerError(f"wrk says nothing of use: {line or 'nothing at all'}") from error
    p50, p90, p99 = (found[name] / 1000 if found["requests"] else None for name in ("p50", "p90", "p99"))
    return Load(
        found["requests"],
        found["microseconds"] / 1_000_000,
        p50=p50,
        p90=p90,
        p99=p99,
        refused=found["refused"],
        lost=found["lost"],
    )
