"""The servers: how each is started, on a free port and as a process of its own, and how its answers are read."""

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
_START = 180.0
_STOP = 15.0
# An answer within so many seconds comes from a server that has nothing else to do. All of them answer in order, so
# after so many there is nothing left in any case; on a slow machine none may be that quick.
_CALM = 0.3
_PROBES = 30
_PATIENCE = 60.0
_TAIL = 15


class ServerError(Exception):
    """A server, or what drives it, does not do its work; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says of a picture: its likeliest class and the probability of it."""

    label: str
    probability: float


def _plain(answer: Any) -> Answer:
    return Answer(answer["label"], answer["probability"])


def _first_result(answer: Any) -> Answer:
    (result,) = answer["results"]
    return _plain(result["top_k"][0])


@dataclass(frozen=True, slots=True)
class Server:
    """A server to be measured.

    Attributes:
        name: in the table.
        module: that `python -m` runs.
        package: that it needs beside our own requirements, if any.
        target: of its requests.
        encodings: of bodies that it takes.
        read: its JSON to an answer.
        classifies: whether its answers mean anything.
    """

    name: str
    module: str
    package: str | None = None
    target: str = "/predict"
    encodings: tuple[Encoding, ...] = ("multipart",)
    read: Callable[[Any], Answer] = _plain
    classifies: bool = True

    @property
    def installed(self) -> bool:
        """Whether what it needs is there."""
        return self.package is None or importlib.util.find_spec(self.package) is not None


_BOTH: tuple[Encoding, ...] = ("multipart", "raw")
# One view, as all others have it, and one class.
_OURS = "/predict?top_k=1&views=1"

SERVERS: Sequence[Server] = (
    Server("naive", f"{_PEERS}.naive"),
    Server("tuned", f"{_PEERS}.tuned"),
    Server("litserve", f"{_PEERS}.litserve", package="litserve"),
    Server("mosec", f"{_PEERS}.mosec", package="mosec", encodings=_BOTH),
    Server("tenfold", "app", target=_OURS, encodings=_BOTH, read=_first_result),
    Server("front", f"{_PEERS}.front", target=_OURS, encodings=_BOTH, read=_first_result, classifies=False),
)

PEERS = frozenset({"tuned", "litserve", "mosec"})
"""Those that Tenfold is to be held against."""


class Running:
    """A server that runs, and answers only between `resume` and `pause`.

    A paused one is stopped by the kernel with all its processes, so that it cannot take time from the one that is
    driven: some look for work a thousand times a second.

    Attributes:
        server: which.
        port: where it listens.

    Args:
        server: to be started.
        weights: folder of the bundle.
        log: file for what it writes.
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
        """Of its requests."""
        return f"http://127.0.0.1:{self.port}{self.server.target}"

    def wait_ready(self, body: Body) -> None:
        """Wait until a picture is answered.

        Raises:
            ServerError: it ends, or does not answer in time.
        """
        ends = time.monotonic() + _START
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise self._broken(f"ends with code {self._process.returncode} before it answers")
            with suppress(OSError, http.client.HTTPException):
                if self._post(body)[0] == 200:
                    return
            time.sleep(0.1)
        raise self._broken(f"does not answer within {_START:g} s")

    def pause(self) -> None:
        """Stop it where it is."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def settle(self, body: Body) -> None:
        """Let it finish what a run has left with it: it is asked about a picture until it answers at once.

        Raises:
            ServerError: it does not answer.
        """
        for _ in range(_PROBES):
            began = time.monotonic()
            self.ask(body)
            if time.monotonic() - began < _CALM:
                return

    def ask(self, body: Body) -> Answer:
        """Its answer to a picture.

        Raises:
            ServerError: there is none.
        """
        try:
            status, data = self._post(body)
            if status == 200:
                return self.server.read(json.loads(data))
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(f"does not answer: {type(error).__name__}") from error
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise self._broken(f"answers nonsense: {data[:200]!r}") from error
        raise self._broken(f"answers {status}: {data[:200]!r}")

    def stop(self) -> None:
        """End it: politely, then not."""
        self.resume()
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP)
        self._signal_all(signal.SIGKILL)
        self._process.wait()

    def _post(self, body: Body) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE)
        try:
            connection.request("POST", self.server.target, body.data, {"Content-Type": body.content_type})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def _signal_all(self, sig: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, sig)

    def _broken(self, what: str) -> ServerError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
        return ServerError("\n".join([f"{self.server.name} {what}; the end of its log ({self._log}):", *lines]))


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _environment(port: int, weights: Path) -> Mapping[str, str]:
    """What tells any of them where to listen and which weights to load."""
    return {
        "BENCH_PORT": str(port),
        "BENCH_WEIGHTS": str(weights),
        "TENFOLD_HOST": "127.0.0.1",
        "TENFOLD_PORT": str(port),
        "TENFOLD_WEIGHTS": str(weights),
    }
