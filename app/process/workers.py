"""Several worker processes that share one listening socket, each with its own model: TENFOLD_WORKERS."""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from app.cpus import available_cpus
from app.main import bundle_folders
from app.process.link import Link
from app.process.server import reloads_on_sighup
from app.process.sockets import CannotListen, describe_address, ignore_new_connections, listen
from app.serving.swap import Coordinator, Drain, Listen, Message, Reload
from app.settings import LEAST_DECODE_THREADS, Settings
from app.telemetry.metrics import SHARED_FOLDER, mark_worker_dead
from model import ModelError

logger = logging.getLogger("tenfold")

_POLL = 0.05
# Seconds. A worker that lived shorter than this is replaced after a delay. If it ended with an error, as when the
# model cannot be loaded, the service ends, because its replacement would fail too.
_SHORT_LIFE = 30.0
# Seconds. The delay doubles with each short life in a row, up to 32 seconds.
_FIRST_DELAY = 0.5
_DOUBLINGS = 6
# The event loop of a worker needs 1 ms per request and the shipped network 2.4 ms of a CPU per image. So one event loop
# occupies about four CPUs.
_CPUS_PER_WORKER = 4
_CUDA_DEVICE = Path("/dev/nvidiactl")
# A worker runs this package, not one of the same name in the current folder, which -P leaves out.
_PACKAGES = str(Path(__file__).resolve().parents[2])
_WORKER = (sys.executable, "-P", "-m", "app")


@dataclass(slots=True)
class _Worker:
    """A worker process.

    Attributes:
        process: its standard input is the other end of `link`.
        link: `Listen` means accept connections, `Drain` means drain, the end means stop listening; other messages are
            about new weights.
        started: time.monotonic.
        listens: whether it got `Listen`.
    """

    process: subprocess.Popen[bytes]
    link: Link
    started: float
    listens: bool = False


@dataclass(slots=True)
class _Slot:
    """A place for a worker.

    Attributes:
        worker: None until the next one is started.
        start_at: time.monotonic from which on the next one may start.
        short_lives: how many workers in a row lived a short time here.
    """

    worker: _Worker | None = None
    start_at: float = 0.0
    short_lives: int = 0


class Supervisor:
    """Starts the workers, replaces those that end, and ends them all on a signal.

    It owns the listening sockets, so it alone stops new connections. Each worker's standard input is a socket that is
    connected to the supervisor: see `_Worker`. If the supervisor dies, the kernel closes the sockets, so that no worker
    outlives it. A worker accepts connections once it has loaded the models, or at once if no other one does, so that
    probes get responses. The supervisor coordinates the swaps of weights, because all workers must swap or none.

    Args:
        settings: of the service.
        listening: the sockets that all workers accept from. They are closed at the end.
        folder: for the workers' metrics.
        command: starts a worker; the descriptors of the sockets are appended.
        bundles: name of each model -> folder of its bundle.
    """

    def __init__(
        self,
        settings: Settings,
        listening: Sequence[socket.socket],
        folder: str,
        command: Sequence[str],
        bundles: Mapping[str, Path],
    ) -> None:
        self._listening = listening
        self._folder = folder
        self._command = command
        self._drain_delay = settings.drain_delay
        workers = worker_count(settings)
        share = max(1, available_cpus() // workers)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (_PACKAGES, os.environ.get("PYTHONPATH")))),
            SHARED_FOLDER: folder,
            "TENFOLD_WORKERS": str(workers),
            "TENFOLD_WEIGHTS_ROOT": str(settings.new_weights_root),  # the default depends on the first bundle
            "TENFOLD_THREADS": str(settings.threads or share),
            "TENFOLD_DECODE_THREADS": str(settings.decode_threads or max(LEAST_DECODE_THREADS, share)),
        }
        self._slots = [_Slot() for _ in range(workers)]
        self._signals: list[int] = []
        self._reload = False
        self._signalled = False
        self._stopping = False
        self._close_at = math.inf
        self._code = 0
        self._bundles = dict(bundles)
        self._coordinator = Coordinator(bundles, members=workers, send=self._send, on_commit=self._start_with)

    def handle(self, sig: int, frame: FrameType | None = None) -> None:  # noqa: ARG002
        """Handle a signal: set a flag for `run`.

        SIGTERM drains for the drain delay, SIGINT at once; a second signal does not wait for requests.
        """
        self._signals.append(sig)

    def handle_reload(self, sig: int, frame: FrameType | None = None) -> None:  # noqa: ARG002
        """Handle SIGHUP: set a flag for `run`."""
        self._reload = True

    def run(self) -> int:
        """Start and restart the workers until a signal or a failure ends them.

        Returns:
            The exit code: 0 after a drain, 1 if a worker failed.
        """
        try:
            while True:
                while self._signals:
                    self._on_signal(self._signals.pop(0))
                for slot in self._slots:
                    self._check(slot)
                if self._reload:
                    self._reload = False
                    for worker in self._workers()[:1]:  # it orders a swap, like one that gets a request
                        worker.link.send(Reload())
                self._coordinator.tick()
                if time.monotonic() >= self._close_at:
                    self._close()
                if self._stopping and not self._workers():
                    return self._code
                time.sleep(_POLL)
        finally:
            for each in self._listening:
                each.close()

    def _check(self, slot: _Slot) -> None:
        if slot.worker is None:
            if not self._stopping and time.monotonic() >= slot.start_at:
                slot.worker = self._start()
                self._coordinator.join(slot.worker.process.pid)
                self._keep_one_listening()
            return
        for message in slot.worker.link.receive():
            self._coordinator.receive(slot.worker.process.pid, message)
        if (code := slot.worker.process.poll()) is not None:
            worker, slot.worker = slot.worker, None
            self._reap(slot, worker, code)
            self._keep_one_listening()

    def _keep_one_listening(self) -> None:
        """Let the oldest worker accept connections, loaded or not, if none has got this message."""
        workers = self._workers()
        if workers and not any(worker.listens for worker in workers):
            oldest = min(workers, key=lambda worker: worker.started)
            oldest.listens = True
            oldest.link.send(Listen())

    def _start(self) -> _Worker:
        descriptors = [each.fileno() for each in self._listening]
        own, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [*self._command, *map(str, descriptors)],
                stdin=theirs.fileno(),
                env=self._environment,
                pass_fds=descriptors,
                start_new_session=True,  # so that Ctrl-C in a terminal reaches the supervisor only
            )
        return _Worker(process, Link(own), time.monotonic())

    def _reap(self, slot: _Slot, worker: _Worker, code: int) -> None:
        pid, lived = worker.process.pid, time.monotonic() - worker.started
        worker.link.close()
        self._coordinator.leave(pid)
        mark_worker_dead(pid, self._folder)
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if self._stopping:
            if code not in (0, -signal.SIGTERM):  # the latter if it was ended before it could handle signals
                logger.error("worker %d %s", pid, ended)
                self._code = 1
        elif code > 0 and lived < _SHORT_LIFE:
            logger.error("worker %d %s within %.0f s: the service ends", pid, ended, _SHORT_LIFE)
            self._code = 1
            self._stop(self._drain_delay)
        else:
            slot.short_lives = slot.short_lives + 1 if lived < _SHORT_LIFE else 0
            delay = restart_delay(slot.short_lives)
            slot.start_at = time.monotonic() + delay
            logger.error("worker %d %s: another one starts in %g s", pid, ended, delay)

    def _on_signal(self, sig: int) -> None:
        if self._signalled:
            for worker in self._workers():
                worker.process.send_signal(signal.SIGTERM)  # it drains already, so it does not wait for requests
            self._stop(0.0)
        else:
            self._stop(self._drain_delay if sig == signal.SIGTERM else 0.0)
        self._signalled = True

    def _stop(self, delay: float) -> None:
        """Let the workers drain, and stop listening after so many seconds."""
        if not self._stopping:
            self._stopping = True
            self._coordinator.stop()
            for worker in self._workers():
                worker.link.send(Drain())
        self._close_at = min(self._close_at, time.monotonic() + delay)

    def _close(self) -> None:
        """Stop listening, and let the workers stop once they have accepted what the kernel has accepted."""
        self._close_at = math.inf
        for each in self._listening:
            if each.fileno() >= 0:
                ignore_new_connections(each.fileno())
                each.close()
        for worker in self._workers():
            worker.link.close()

    def _send(self, member: int, message: Message) -> None:
        for worker in self._workers():
            if worker.process.pid == member:
                worker.link.send(message)

    def _start_with(self, model: str, folder: Path) -> None:
        """Let the workers that are started from now on load another bundle."""
        self._bundles[model] = folder
        self._environment.pop("TENFOLD_WEIGHTS", None)
        self._environment["TENFOLD_MODELS"] = ",".join(map(str, self._bundles.values()))

    def _workers(self) -> list[_Worker]:
        return [slot.worker for slot in self._slots if slot.worker]


def restart_delay(short_lives: int) -> float:
    """Seconds before a worker is replaced, if so many in a row lived a short time."""
    return _FIRST_DELAY * 2.0 ** min(short_lives - 1, _DOUBLINGS) if short_lives else 0.0


def worker_count(settings: Settings, cpus: int | None = None, cuda_device: Path = _CUDA_DEVICE) -> int:
    """The number of worker processes. If the settings leave it open: one for every four CPUs, and one with CUDA.

    Several workers would divide the memory of a GPU, and have smaller batches.

    Args:
        settings: of the service.
        cpus: number of CPUs, those of this process if not given.
        cuda_device: a file that exists if there is a CUDA device.
    """
    if settings.workers:
        return settings.workers
    if settings.device == "cuda" or (settings.device == "auto" and cuda_device.exists()):
        return 1
    return max(1, (available_cpus() if cpus is None else cpus) // _CPUS_PER_WORKER)


def supervise(settings: Settings, command: Sequence[str] = _WORKER) -> int:
    """Serve with several processes until a signal ends them.

    Args:
        settings: of the service.
        command: see Supervisor.

    Returns:
        The exit code: 0 after a drain; 1 if the address cannot be listened on or a worker fails.
    """
    try:
        bundles = bundle_folders(settings)
    except ModelError as error:
        logger.error("the models cannot be loaded: %s", error)
        return 1
    try:
        listening = listen(settings)  # at once, so that no other program takes the port while the workers load
    except CannotListen as error:
        logger.error("%s", error)
        return 1
    with tempfile.TemporaryDirectory(prefix="tenfold-metrics-") as folder:
        supervisor = Supervisor(settings, listening, folder, command, bundles)
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, supervisor.handle)
        if reloads_on_sighup():
            signal.signal(signal.SIGHUP, supervisor.handle_reload)
        logger.info("Uvicorn running on %s (Press CTRL+C to quit)", describe_address(listening))
        return supervisor.run()
