"""Load generation with wrk: one thread, and connections that each send again as soon as they have a response."""

import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.servers import ServerError

_SCRIPT = Path(__file__).with_name("post.lua")
# wrk has a counter for each microsecond of the timeout, so it is no longer than necessary.
_TIMEOUT = 60


@dataclass(frozen=True, slots=True)
class Load:
    """The results of one run.

    Attributes:
        requests: number of responses with any status.
        seconds: duration.
        p50: median latency in milliseconds; None without responses.
        p90: 90th percentile in milliseconds; None without responses.
        p99: 99th percentile in milliseconds; None without responses.
        rejected: responses with a status of 400 or above.
        lost: failed connections and missing responses.
    """

    requests: int
    seconds: float
    p50: float | None
    p90: float | None
    p99: float | None
    rejected: int
    lost: int

    @property
    def rate(self) -> float:
        """Successful requests per second."""
        return (self.requests - self.rejected) / self.seconds

    @property
    def errors(self) -> int:
        """Requests that were rejected or lost."""
        return self.rejected + self.lost


def find_wrk() -> str:
    """The path of wrk.

    Raises:
        ServerError: it is not installed.
    """
    path = shutil.which("wrk")
    if path is None:
        raise ServerError("wrk is not installed: apt install wrk")
    return path


def drive(
    url: str,
    content_type: str,
    bodies: Sequence[Path],
    *,
    connections: int,
    seconds: int,
    headers: Mapping[str, str] | None = None,
) -> Load:
    """Send the bodies in rotation.

    Args:
        url: of the requests.
        content_type: of the bodies.
        bodies: files.
        connections: number of connections.
        seconds: duration.
        headers: further headers of each request.

    Raises:
        ServerError: wrk is not installed, or fails.
    """
    command = [find_wrk(), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{_TIMEOUT}s", "--script", str(_SCRIPT), url, "--"]
    lines = [f"{name}: {value}" for name, value in {"Content-Type": content_type, **(headers or {})}.items()]
    command += ["\n".join(lines), *map(str, bodies)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 2 * _TIMEOUT)
    if done.returncode:
        raise ServerError(f"wrk fails: {(done.stderr or done.stdout).strip()}")
    return parse_output(done.stdout)


def parse_output(output: str) -> Load:
    """Parse the output of wrk, whose last line is the JSON of post.lua.

    Raises:
        ServerError: there is no such line.
    """
    line = output.rstrip().rpartition("\n")[2]
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ServerError(f"wrk prints no result: {line or 'no output'}") from error
    p50, p90, p99 = (found[name] / 1000 if found["requests"] else None for name in ("p50", "p90", "p99"))
    return Load(
        found["requests"],
        found["microseconds"] / 1_000_000,
        p50=p50,
        p90=p90,
        p99=p99,
        rejected=found["rejected"],
        lost=found["lost"],
    )
