"""The service on a real port: in a thread of the test, or as a process of its own."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from app.engine.core import EngineCore
from app.main import create_app
from app.process.server import Server, config_of
from app.process.sockets import listen
from app.serving.service import Service
from app.settings import Settings
from model import Classifier
from tests.app.fakes import CARD, FakeEngine, fake_classifier, image_file

ROOT = Path(__file__).resolve().parents[2]


def eventually(condition: Callable[[], bool], what: str, *, seconds: float = 20.0) -> None:
    """Wait until `condition` holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)


class Running:
    """A service that listens.

    Attributes:
        server: of `python -m app`.
        thread: that it runs in.
        engine: the fake one that it runs images through.
        service: what its routes are given.
        port: that it listens at.
        client: speaks to it.
        path: that images are sent to.
    """

    path = "/predict"

    def __init__(self, app: FastAPI, server: Server, thread: threading.Thread, engine: FakeEngine) -> None:
        self.server = server
        self.thread = thread
        self.engine = engine
        self.service: Service = app.state.service
        self.port: int = server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20)

    @property
    def core(self) -> EngineCore:
        """The engine in this process."""
        assert isinstance(self.service.engine, EngineCore)
        return self.service.engine

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def post(self, data: bytes, **options: Any) -> httpx.Response:
        """Send an image as the raw body."""
        return self.client.post(self.path, content=data, **options)

    def upload(self, *files: tuple[str, bytes], **options: Any) -> httpx.Response:
        """Send images as multipart/form-data."""
        return self.client.post(self.path, files=[("file", file) for file in files], **options)

    def in_background(self, send: Callable[[], httpx.Response]) -> "Pending":
        """Send a request in a thread."""
        return Pending(send)

    def wait_admitted(self, count: int) -> None:
        """Wait until `count` images are in progress."""
        eventually(lambda: sum(self.core.models.images.used.values()) == count, f"{count} images in progress")

    def wait_uploads(self, count: int) -> None:
        """Wait until the bodies of `count` requests are being read."""
        eventually(lambda: sum(self.service.limits.uploads.used.values()) == count, f"{count} uploads in progress")


class Pending:
    """A request in progress in a thread."""

    def __init__(self, send: Callable[[], httpx.Response]) -> None:
        self._answers: list[httpx.Response] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(send()))
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the response has arrived."""
        return not self._thread.is_alive()

    def result(self) -> httpx.Response:
        """Its response."""
        self._thread.join(20)
        assert self._answers, "the request was not answered"
        return self._answers[0]


class Visitor:
    """A client that posts an image again and again on a kept-alive connection, until it cannot connect.

    Attributes:
        responses: of each response, when its request was sent (time.monotonic), status and Connection header.
        ended: why it stopped.
    """

    def __init__(self, port: int) -> None:
        self.responses: list[tuple[float, int, str]] = []
        self.ended: Exception | None = None
        self._port = port
        self._thread = threading.Thread(target=self._visit)
        self._thread.start()

    def _visit(self) -> None:
        data = image_file()
        with httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=30) as client:
            while self.ended is None:
                sent = time.monotonic()
                try:
                    response = client.post("/predict", content=data)
                except httpx.HTTPError as error:
                    self.ended = error
                else:
                    connection = response.headers.get("Connection", "")
                    self.responses.append((sent, response.status_code, connection))

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def serving(
    engine: FakeEngine | None = None,
    *,
    load: Callable[[], Classifier] | None = None,
    name: str = CARD.name,
    others: Mapping[str, Callable[[], Classifier]] | None = None,
    on_failure: Callable[[], None] = lambda: None,
    wait_ready: bool = True,
    **settings: Any,
) -> Iterator[Running]:
    """Serve on a free port, in a thread, as `python -m app` does.

    Args:
        engine: that runs the images; a fresh one if not given.
        load: gives the classifier of the default model, if it is not the fake one with `engine`.
        name: of the default model.
        others: name to load function of the other models.
        on_failure: see create_app.
        wait_ready: whether to wait for /readyz.
        settings: those that differ from the defaults.
    """
    engine = engine or FakeEngine()
    chosen = Settings(**{"port": 0, "drain_delay": 0.0, "drain_timeout": 5, **settings})
    models = {name: load or (lambda: fake_classifier(engine)), **(others or {})}
    app = create_app(chosen, load=models, on_failure=on_failure)
    server = Server(config_of(chosen, app), app.state.service, chosen.drain_delay)
    thread = threading.Thread(target=server.run, args=(listen(chosen),))
    thread.start()
    try:
        eventually(lambda: server.started and bool(server.servers), "the server listens")
        running = Running(app, server, thread, engine)
        try:
            if wait_ready:
                eventually(lambda: running.service.state in {"ready", "failed"}, "the service is ready", seconds=120)
                assert running.service.state == "ready", "see the log for the reason"
            yield running
        finally:
            running.client.close()
    finally:
        engine.release()
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def default_sigint() -> Iterator[None]:
    """Start child processes with SIGINT at its default, whatever this process inherited; for the main thread only.

    A shell's `&` lets a command ignore SIGINT, and its children inherit that. A handler is not inherited: exec resets
    it to the default.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Process:
    """A service process; its log goes to a file.

    Attributes:
        popen: the process.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str], log: Path, folder: Path = ROOT) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
        with log.open("wb") as file, default_sigint():
            self.popen = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env={**kept, "PYTHONWARNINGS": "error::ResourceWarning", **environment},
                stdin=subprocess.DEVNULL,  # with a terminal, SIGHUP has another meaning
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._log = log

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(encoding="utf-8")

    @property
    def port(self) -> int:
        """Where it listens; waits until it does."""
        listening = re.compile(r"unning on http://(?:127\.0\.0\.1|\[::\]):(\d+)")
        eventually(
            lambda: bool(listening.search(self.log)) or self.popen.poll() is not None,
            "the process listens",
            seconds=120,
        )
        found = listening.search(self.log)
        assert found, self.log
        return int(found[1])

    def client(self) -> httpx.Client:
        """A client of it."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def wait_logged(self, text: str, times: int = 1) -> None:
        """Wait until it has logged `text` so many times."""
        eventually(
            lambda: self.log.count(text) >= times or self.popen.poll() is not None,
            f"{text!r} is logged {times} times",
            seconds=120,
        )
        assert self.log.count(text) >= times, self.log

    def wait_ready(self) -> None:
        """Wait for /readyz."""
        with self.client() as client:
            eventually(lambda: client.get("/readyz").status_code == 200, "the process is ready", seconds=120)

    def exit_code(self, timeout: float = 120) -> int:
        """Its exit code; waits until it has ended."""
        return self.popen.wait(timeout)


@contextlib.contextmanager
def process(
    environment: Mapping[str, str], log: Path, *, arguments: list[str] | None = None, folder: Path = ROOT
) -> Iterator[Process]:
    """`python -m app`, or other arguments of the interpreter, ended afterwards whatever happens.

    Args:
        environment: variables in addition to those of this process.
        log: file for its output.
        arguments: of the interpreter.
        folder: that it is started in.
    """
    running = Process(arguments or ["-m", "app"], environment, log, folder)
    try:
        yield running
    finally:
        if running.popen.poll() is None:
            running.popen.send_signal(signal.SIGKILL)
            running.popen.wait(20)
