"""The servers: how each is started in a process of its own, and how its responses are read."""

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serving.payloads import Body, Encoding

_PEERS = "benchmarks.serving.peers"
_START_TIMEOUT = 180.0
_STOP_TIMEOUT = 15.0
# A response within so many seconds means that the server is idle. A slow machine may never reach that, but since all
# servers process requests in order, they are idle after so many probes in any case.
_IDLE_LATENCY = 0.3
_PROBES = 30
_TIMEOUT = 60.0
_LOG_LINES = 15


class ServerError(Exception):
    """A server or a tool failed. The message says what to look at."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable class of an image."""

    label: str
    probability: float


def _parse_plain(content: Any) -> Prediction:
    return Prediction(content["label"], content["probability"])


def _parse_tenfold(content: Any) -> Prediction:
    (result,) = content["results"]
    return _parse_plain(result["top_k"][0])


@dataclass(frozen=True, slots=True)
class Server:
    """A server to be measured.

    Attributes:
        name: name in the table.
        module: module for `python -m`.
        package: package that it requires in addition to those of the service.
        target: path and query of its requests.
        encodings: encodings of bodies that it accepts.
        parse: the JSON of a response -> prediction.
        classifies: whether its predictions are real.
    """

    name: str
    module: str
    package: str | None = None
    target: str = "/predict"
    encodings: tuple[Encoding, ...] = ("multipart",)
    parse: Callable[[Any], Prediction] = _parse_plain
    classifies: bool = True

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


_BOTH: tuple[Encoding, ...] = ("multipart", "raw")
# One view and one class, like the others.
_TENFOLD = "/predict?top_k=1&views=1"

SERVERS: Sequence[Server] = (
    Server("naive", f"{_PEERS}.naive"),
    Server("tuned", f"{_PEERS}.tuned"),
    Server("litserve", f"{_PEERS}.litserve", package="litserve"),
    Server("mosec", f"{_PEERS}.mosec", package="mosec", encodings=_BOTH),
    Server("tenfold", "app", target=_TENFOLD, encodings=_BOTH, parse=_parse_tenfold),
    Server("front", f"{_PEERS}.front", target=_TENFOLD, encodings=_BOTH, parse=_parse_tenfold, classifies=False),
)

PEERS = frozenset({"tuned", "litserve", "mosec"})
"""The servers that Tenfold is compared with."""


class RunningServer:
    """A server process, which responds only between `resume` and `pause`.

    While paused, all its processes are stopped by the kernel, so that they use no CPU time during the measurement of
    another server. Some poll for work a thousand times per second.

    Attributes:
        server: its description.
        port: its port.

    Args:
        server: the server to start.
        weights: folder of the bundle.
        log: file for its output.
    """

    def __init__(self, server: Server, weights: Path, log: Path) -> None:
        self.server = server
        self.port = _free_port()
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", server.module],
                env={**os.environ, **_environment(self.port, weights)},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all its processes can be paused together
            )

    @property
    def url(self) -> str:
        """URL of its requests."""
        return f"http://127.0.0.1:{self.port}{self.server.target}"

    def wait_ready(self, body: Body) -> None:
        """Wait until a request succeeds.

        Raises:
            ServerError: it exits, or does not respond in time.
        """
        ends = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise self._error(f"exits with code {self._process.returncode} before it responds")
            with suppress(OSError, http.client.HTTPException):
                if self._post(body)[0] == 200:
                    return
            time.sleep(0.1)
        raise self._error(f"does not respond within {_START_TIMEOUT:g} s")

    def pause(self) -> None:
        """Stop all its processes with SIGSTOP."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue all its processes."""
        self._signal_all(signal.SIGCONT)

    def wait_idle(self, body: Body) -> None:
        """Wait until it has finished earlier requests, by sending one until the response is immediate.

        Raises:
            ServerError: it does not respond.
        """
        for _ in range(_PROBES):
            started = time.monotonic()
            self.predict(body)
            if time.monotonic() - started < _IDLE_LATENCY:
                return

    def predict(self, body: Body) -> Prediction:
        """Send a request and parse the response.

        Raises:
            ServerError: there is no prediction.
        """
        try:
            status, data = self._post(body)
            if status == 200:
                return self.server.parse(json.loads(data))
        except (OSError, http.client.HTTPException) as error:
            raise self._error(f"does not respond: {type(error).__name__}") from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._error(f"responds with something else: {data[:200]!r}") from error
        raise self._error(f"responds with status {status}: {data[:200]!r}")

    def stop(self) -> None:
        """Terminate it, and kill it if it does not exit."""
        self.resume()
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT)
        self._signal_all(signal.SIGKILL)
        self._process.wait()

    def _post(self, body: Body) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT)
        try:
            connection.request("POST", self.server.target, body.data, {"Content-Type": body.content_type})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _signal_all(self, sig: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, sig)

    def _error(self, what: str) -> ServerError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return ServerError("\n".join([f"{self.server.name} {what}; the end of its log ({self._log}):", *lines]))


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _environment(port: int, weights: Path) -> Mapping[str, str]:
    """Port and weights as every server reads them."""
    return {
        "BENCH_PORT": str(port),
        "BENCH_WEIGHTS": str(weights),
        "TENFOLD_HOST": "127.0.0.1",
        "TENFOLD_PORT": str(port),
        "TENFOLD_WEIGHTS": str(weights),
        "TENFOLD_MODELS": "",
    }
