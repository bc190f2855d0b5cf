"""Several processes at one socket, each with its own model: TENFOLD_WORKERS."""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from types import FrameType

from app.process.server import config_of
from app.settings import Settings
from app.telemetry.metrics import SHARED_FOLDER, mark_worker_dead

logger = logging.getLogger("tenfold")

_POLL = 0.05
# As uvicorn has it.
_BACKLOG = 2048
# A worker that gives up within so many seconds is not replaced: the next one would as well.
_YOUNG = 30.0


@dataclass(frozen=True, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    began: float


class Supervisor:
    """Starts the workers, replaces one that dies, and passes signals on.

    Args:
        settings: of the service.
        listening: the socket that all of them accept from.
        folder: for their metrics.
    """

    def __init__(self, settings: Settings, listening: socket.socket, folder: str) -> None:
        self._listening = listening
        self._folder = folder
        threads = settings.threads or max(1, (os.cpu_count() or 1) // settings.workers)
        self._environment = {**os.environ, SHARED_FOLDER: folder, "TENFOLD_THREADS": str(threads)}
        self._signals: list[int] = []
        self._stopping = False
        self._code = 0
        self._workers = [self._start() for _ in range(settings.workers)]

    def handle(self, sig: int, frame: FrameType | None = None) -> None:  # noqa: ARG002
        """Have `run` pass a signal on to all workers, which then end, and with the last of them `run`."""
        self._signals.append(sig)

    def run(self) -> int:
        """Look after the workers until they have ended.

        Returns:
            The exit code: 0 after a drain, 1 if a worker failed.
        """
        while self._workers:
            time.sleep(_POLL)
            while self._signals:
                self._stop(self._signals.pop(0))
            for worker in list(self._workers):
                code = worker.process.poll()
                if code is not None:
                    self._workers.remove(worker)
                    self.reap(worker, code)
        return self._code

    def _start(self) -> _Worker:
        descriptor = self._listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "app", str(descriptor)],
            env=self._environment,
            pass_fds=[descriptor],
            start_new_session=True,  # Ctrl-C reaches us alone, or they would get it twice
        )
        return _Worker(process, time.monotonic())

    def _stop(self, sig: int) -> None:
        self._stopping = True
        # Theirs are open until they have drained; ours would keep newcomers waiting for nobody.
        self._listening.close()
        for worker in self._workers:
            worker.process.send_signal(sig)

    def reap(self, worker: _Worker, code: int) -> None:
        mark_worker_dead(worker.process.pid, self._folder)
        if self._stopping:
            if code not in (0, -signal.SIGTERM):  # the latter before it could drain: it had nothing yet
                self._code = 1
            return
        logger.error("worker %d has ended with code %d", worker.process.pid, code)
        if code > 0 and time.monotonic() - worker.began < _YOUNG:
            self._code = 1
            self._stop(signal.SIGTERM)
        else:
            self._workers.append(self._start())


def supervise(settings: Settings) -> int:
    """Serve with several processes until told to stop.

    Returns:
        The exit code: 0 after a drain, 1 when nothing can listen there or a worker cannot begin.
    """
    try:
        listening = config_of(settings).bind_socket()
        listening.listen(_BACKLOG)  # at once, so that nobody else takes the port while the workers load
    except SystemExit:  # uvicorn has logged why
        return 1
    except OSError as error:  # somebody was quicker between the two
        logger.error("nothing can listen at %s:%d: %s", settings.host, settings.port, error)
        return 1
    with tempfile.TemporaryDirectory(prefix="tenfold-metrics-") as folder:
        supervisor = Supervisor(settings, listening, folder)
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, supervisor.handle)
        return supervisor.run()
