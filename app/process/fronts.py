"""Several processes that speak HTTP and one that owns the models: TENFOLD_WORKERS."""

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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from app.cpus import available_cpus, default_threads
from app.engine.models import Load
from app.main import bundle_folders
from app.process.engine import serve_engine
from app.process.link import ALIVE, Link
from app.process.server import Front, reloads_on_sighup, serve
from app.process.sockets import CannotListen, describe_address, ignore_new_connections, listen
from app.settings import LEAST_DECODE_THREADS, Settings
from app.telemetry.metrics import SHARED_FOLDER, mark_process_ended
from model import ModelError

logger = logging.getLogger("tenfold")

_POLL = 0.05
# Seconds. A process that lived shorter than this is replaced after a delay. If it ended with an error, as when the
# model cannot be loaded, the service ends, because its replacement would fail too.
_SHORT_LIFE = 30.0
# Seconds. The delay doubles with each short life in a row, up to 32 seconds.
_FIRST_DELAY = 0.5
_DOUBLINGS = 6
# So many engine processes in a row that lived a short time end the service.
_MAX_ENGINES = 3
# Seconds without a message from the event loop of a process, after which it is killed and replaced.
_SILENCE = 10.0
# Seconds beyond the drain timeout, after which a process that still runs is killed.
_GRACE = 5.0
# The event loop of a front needs 1 ms per request and the shipped network 2.4 ms of a CPU per image. So one event loop
# occupies about four CPUs.
_CPUS_PER_FRONT = 4
_MAX_FRONTS = 16
_CUDA_DEVICE = Path("/dev/nvidiactl")
# A child runs this package, not one of the same name in the current folder, which -P leaves out.
_PACKAGES = str(Path(__file__).resolve().parents[2])
_CHILD = (sys.executable, "-P", "-m", "app")


@dataclass(slots=True)
class _Child:
    """A running process.

    Attributes:
        process: its standard input is the other end of `link`.
        link: the message "drain" means drain, and the end means stop.
        started: time.monotonic.
        silence: seconds since its last message. It begins with the first one, because imports send none.
    """

    process: subprocess.Popen[bytes]
    link: Link
    started: float
    silence: float | None = None


@dataclass(slots=True)
class _Slot:
    """A place for a front, or for the engine process.

    Attributes:
        role: "front" or "engine", for the log.
        arguments: of its command.
        descriptors: that it inherits.
        child: None until the next one is started.
        start_at: time.monotonic from which on the next one may start.
        short_lives: how many in a row lived a short time here.
    """

    role: str
    arguments: Sequence[str]
    descriptors: Sequence[int]
    child: _Child | None = None
    start_at: float = 0.0
    short_lives: int = 0


class Supervisor:
    """Starts the fronts and the engine process, replaces those that end or hang, and ends them all on a signal.

    It owns the listening sockets and that of the engine process, so that connections wait while a process is replaced.
    Each child's standard input is a socket that is connected to the supervisor: see `_Child`. If the supervisor dies,
    the kernel closes the sockets, so that no child outlives it. The engine process ends after the fronts.

    Args:
        settings: of the service.
        listening: the sockets that all fronts accept from. They are closed at the end.
        folder: for the metrics of the processes, and for the socket of the engine process.
        command: starts a child. The role and what it shares with the others are appended.
        bundles: name of each model -> folder of its bundle.
        silence: seconds after which a process whose event loop stands still is killed and replaced.
    """

    def __init__(
        self,
        settings: Settings,
        listening: Sequence[socket.socket],
        folder: str,
        command: Sequence[str],
        bundles: Mapping[str, Path],
        silence: float = _SILENCE,
    ) -> None:
        self._listening = listening
        self._folder = folder
        self._command = command
        self._drain_delay = settings.drain_delay
        self._drain_timeout = settings.drain_timeout
        self._silence = silence
        self._engine_socket = socket.socket(socket.AF_UNIX)
        path = f"{folder}/engine"
        self._engine_socket.bind(path)
        self._engine_socket.listen()
        fronts = front_count(settings)
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, (_PACKAGES, os.environ.get("PYTHONPATH")))),
            SHARED_FOLDER: folder,
            "TENFOLD_WORKERS": str(fronts),
            "TENFOLD_WEIGHTS_ROOT": str(settings.new_weights_root),  # the default depends on the first bundle
        }
        self._front_environment = {
            name: str(value) for name, value in shares(settings, fronts, available_cpus()).items()
        }
        descriptors = [each.fileno() for each in listening]
        self._engine = _Slot("engine", ["engine"], [self._engine_socket.fileno()])
        self._fronts = [_Slot("front", ["front", path], descriptors) for _ in range(fronts)]
        self._signals: list[int] = []
        self._reload = False
        self._signalled = False
        self._stopping = False
        self._close_at = math.inf
        self._kill_at = math.inf
        self._last_poll = time.monotonic()
        self._code = 0
        self._bundles = dict(bundles)

    def handle(self, sig: int, frame: FrameType | None = None) -> None:  # noqa: ARG002
        """Handle a signal: set a flag for `run`.

        SIGTERM drains for the drain delay, SIGINT at once; a second signal does not wait for requests.
        """
        self._signals.append(sig)

    def handle_reload(self, sig: int, frame: FrameType | None = None) -> None:  # noqa: ARG002
        """Handle SIGHUP: set a flag for `run`."""
        self._reload = True

    def run(self) -> int:
        """Start and restart the processes until a signal or a failure ends them.

        Returns:
            The exit code: 0 after a drain, 1 if a process failed.
        """
        try:
            while True:
                while self._signals:
                    self._on_signal(self._signals.pop(0))
                now = time.monotonic()
                # A pause of this process, or of the machine, is not the silence of the others.
                passed, self._last_poll = min(now - self._last_poll, 4 * _POLL), now
                for slot in (self._engine, *self._fronts):
                    self._check(slot, passed)
                if self._reload:
                    self._reload = False
                    if self._engine.child:
                        self._engine.child.link.send("reload")
                if now >= self._close_at:
                    self._close()
                if self._stopping and not self._children(self._fronts):
                    if not self._engine.child:
                        return self._code
                    self._engine.child.link.close()
                if now >= self._kill_at:
                    for child in self._children():
                        child.process.kill()
                time.sleep(_POLL)
        finally:
            for each in (*self._listening, self._engine_socket):
                each.close()

    def _check(self, slot: _Slot, passed: float) -> None:
        child = slot.child
        if child is None:
            if not self._stopping and time.monotonic() >= slot.start_at:
                slot.child = self._start(slot)
            return
        if child.silence is not None:
            child.silence += passed
        for message in child.link.receive():
            if message == ALIVE:
                child.silence = 0.0
            else:  # of the engine process, about its weights
                _, name, folder = message
                self._start_with(name, Path(folder))
        # At the end, a front finishes its requests without messages, and `_kill_at` is its limit.
        if child.silence is not None and child.silence > self._silence and not self._stopping:
            logger.error("%s %d has been silent for %g s: it is killed", slot.role, child.process.pid, self._silence)
            child.process.kill()
            child.silence = None
        if (code := child.process.poll()) is not None:
            slot.child = None
            self._reap(slot, child, code)

    def _start(self, slot: _Slot) -> _Child:
        own, theirs = socket.socketpair()
        extra = self._front_environment if slot.role == "front" else {}
        with theirs:
            process = subprocess.Popen(
                [*self._command, *slot.arguments, *map(str, slot.descriptors)],
                stdin=theirs.fileno(),
                env={**self._environment, **extra},
                pass_fds=slot.descriptors,
                start_new_session=True,  # so that Ctrl-C in a terminal reaches the supervisor only
            )
        return _Child(process, Link(own), time.monotonic())

    def _reap(self, slot: _Slot, child: _Child, code: int) -> None:
        pid, lived = child.process.pid, time.monotonic() - child.started
        child.link.close()
        mark_process_ended(pid, self._folder)
        ended = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        slot.short_lives = slot.short_lives + 1 if lived < _SHORT_LIFE else 0
        if self._stopping:
            if code not in (0, -signal.SIGTERM):  # the latter if it was ended before it could handle signals
                logger.error("%s %d %s", slot.role, pid, ended)
                self._code = 1
        elif code > 0 and lived < _SHORT_LIFE:
            logger.error("%s %d %s within %.0f s: the service ends", slot.role, pid, ended, _SHORT_LIFE)
            self._fail()
        elif slot is self._engine and slot.short_lives >= _MAX_ENGINES:
            logger.error("%s %d %s, the %drd in a row: the service ends", slot.role, pid, ended, slot.short_lives)
            self._fail()
        else:
            delay = restart_delay(slot.short_lives)
            slot.start_at = time.monotonic() + delay
            logger.error("%s %d %s: another one starts in %g s", slot.role, pid, ended, delay)

    def _fail(self) -> None:
        self._code = 1
        self._stop(self._drain_delay)

    def _on_signal(self, sig: int) -> None:
        if self._signalled:
            for child in self._children(self._fronts):
                child.process.send_signal(signal.SIGTERM)  # it drains already, so it does not wait for requests
            self._stop(0.0)
        else:
            self._stop(self._drain_delay if sig == signal.SIGTERM else 0.0)
        self._signalled = True

    def _stop(self, delay: float) -> None:
        """Let the fronts drain, and stop listening after so many seconds."""
        now = time.monotonic()
        if not self._stopping:
            self._stopping = True
            self._kill_at = now + delay + self._drain_timeout + _GRACE
            for child in self._children():
                child.link.send("drain")
        self._close_at = min(self._close_at, now + delay)

    def _close(self) -> None:
        """Stop listening, and let the fronts stop once they have accepted what the kernel has accepted."""
        self._close_at = math.inf
        for each in self._listening:
            if each.fileno() >= 0:
                ignore_new_connections(each.fileno())
                each.close()
        for child in self._children(self._fronts):
            child.link.close()

    def _start_with(self, model: str, folder: Path) -> None:
        """Let an engine process that is started from now on load another bundle."""
        self._bundles[model] = folder
        self._environment.pop("TENFOLD_WEIGHTS", None)
        self._environment["TENFOLD_MODELS"] = ",".join(map(str, self._bundles.values()))

    def _children(self, slots: Sequence[_Slot] = ()) -> list[_Child]:
        return [slot.child for slot in slots or (self._engine, *self._fronts) if slot.child]


def restart_delay(short_lives: int) -> float:
    """Seconds before a process is replaced, if so many in a row lived a short time."""
    return _FIRST_DELAY * 2.0 ** min(short_lives - 1, _DOUBLINGS) if short_lives else 0.0


def front_count(settings: Settings, cpus: int | None = None, cuda_device: Path = _CUDA_DEVICE) -> int:
    """The number of processes that speak HTTP. 1 means that one process does everything.

    If the settings leave it open: with CUDA one less than there are CPUs, for the engine process, and at most 16; else
    one for every four CPUs.

    Args:
        settings: of the service.
        cpus: number of CPUs, those of this process if not given.
        cuda_device: a file that exists if there is a CUDA device.
    """
    if settings.workers:
        return settings.workers
    cpus = available_cpus() if cpus is None else cpus
    if settings.device.startswith("cuda") or (settings.device == "auto" and cuda_device.exists()):
        return min(max(1, cpus - 1), _MAX_FRONTS)
    return max(1, cpus // _CPUS_PER_FRONT)


def shares(settings: Settings, fronts: int, cpus: int) -> dict[str, int]:
    """The environment of a front: its share of the limits, at least what one request needs.

    Args:
        settings: of the service.
        fronts: their number.
        cpus: number of CPUs.
    """
    return {
        "TENFOLD_MAX_UPLOADS": max(1, settings.max_uploads // fronts),
        "TENFOLD_MAX_HELD_BYTES": max(2 * settings.max_body_bytes, settings.max_held_bytes // fronts),
        "TENFOLD_MAX_DECODE_BYTES": max(1, settings.max_decode_bytes // fronts),
        "TENFOLD_DECODE_THREADS": settings.decode_threads or max(LEAST_DECODE_THREADS, cpus // fronts),
    }


def serve_part(settings: Settings, arguments: Sequence[str], *, load: Mapping[str, Load] | None = None) -> int:
    """Serve as a child of a supervisor, which is connected to standard input.

    Args:
        settings: of the service.
        arguments: "engine" and the descriptor of its socket; or "front", the path of that socket, and the descriptors
            of the sockets that all fronts accept from.
        load: see create_app.

    Returns:
        The exit code.
    """
    role, *shared = arguments
    with closing(Link(socket.socket(fileno=0))) as supervisor:
        if role == "engine":
            settings = settings.model_copy(update={"threads": settings.threads or default_threads()})
            return serve_engine(settings, socket.socket(fileno=int(shared[0])), supervisor, load=load)
        listening = [socket.socket(fileno=int(each)) for each in shared[1:]]
        return serve(settings, load=load, front=Front(listening, shared[0], supervisor))


def supervise(settings: Settings, command: Sequence[str] = _CHILD, *, silence: float = _SILENCE) -> int:
    """Serve with several processes until a signal ends them.

    Args:
        settings: of the service.
        command: see Supervisor.
        silence: see Supervisor.

    Returns:
        The exit code: 0 after a drain; 1 if the address cannot be listened on or a process fails.
    """
    try:
        bundles = bundle_folders(settings)
    except ModelError as error:
        logger.error("the models cannot be loaded: %s", error)
        return 1
    try:
        listening = listen(settings)  # at once, so that no other program takes the port while the models load
    except CannotListen as error:
        logger.error("%s", error)
        return 1
    with tempfile.TemporaryDirectory(prefix="tenfold-") as folder:
        supervisor = Supervisor(settings, listening, folder, command, bundles, silence)
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, supervisor.handle)
        if reloads_on_sighup():
            signal.signal(signal.SIGHUP, supervisor.handle_reload)
        logger.info("Uvicorn running on %s (Press CTRL+C to quit)", describe_address(listening))
        return supervisor.run()
