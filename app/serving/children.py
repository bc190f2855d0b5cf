"""Child processes that decode the files of strangers, with limits that the kernel enforces (Linux).

A template process imports NumPy and Pillow once, without threads, and forks the children. A child runs one function at
a time, has no access to the sockets of the service, writes to no file, and ends with the service. What it sends back
is JSON and bytes: nothing of it is unpickled.
"""

import asyncio
import ctypes
import gc
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Never

from app.memory import limit_kept_memory

if sys.platform == "linux":
    import resource

AVAILABLE: Final = sys.platform == "linux"
"""Whether this system has the limits."""

Result = tuple[Any, bytes]
"""What a function returns: a value for JSON, and bytes."""

# To the template: b"s" starts a child with the socket sent along, b"k" kills it. From the template: number, status.
_COMMAND, _NOTICE = struct.Struct("<cQ"), struct.Struct("<Qi")
# To a child: bytes of memory, seconds of CPU time and in all, bytes of the pickled call and of the file.
_CALL = struct.Struct("<QQdQQ")
# From a child: a mark, whether it may be used again, bytes of JSON, bytes.
_RESULT, _MARK = struct.Struct("<8s?QQ"), b"decoded\n"

# A child that was allowed more memory, or kept more, ends after its call, so that the memory returns to the system.
_KEPT = 64_000_000
_NICE = 10
# The status of a child that could not be forked, as waitpid() returns it: exit code 1.
_NOT_STARTED = 1 << 8
_PR_SET_PDEATHSIG = 1


class ChildEnded(Exception):
    """A child has ended, or was killed because it sent no result of a function.

    Attributes:
        reason: crash, cpu-time or wall-time.
        lost: whether the child is not at fault, because the template has ended.

    Args:
        status: its exit code, or minus the signal that ended it; None if the template ended, and all children with it.
    """

    def __init__(self, status: int | None) -> None:
        if status is None:
            reason = "the template has ended"
        else:
            reason = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        super().__init__(reason)
        self.reason = {-signal.SIGXCPU: "cpu-time", -signal.SIGALRM: "wall-time"}.get(status or 0, "crash")
        self.lost = status is None


class ChildError(Exception):
    """A function raised an exception in a child. The message has its traceback."""


class _Child:
    def __init__(self, number: int, connection: socket.socket, ended: asyncio.Future[int | None]) -> None:
        self.number = number
        self.connection = connection
        self.ended = ended


class Children:
    """A pool of children, which belongs to the event loop's thread. They are started as they are needed.

    Args:
        errors: exceptions that a function may raise. Their message is sent to the service.
        cpu_seconds: CPU time of one call. The kernel ends a child that uses more.
        seconds: time of one call, likewise.
    """

    def __init__(self, *errors: type[Exception], cpu_seconds: int = 6, seconds: float = 60.0) -> None:
        self._errors = {error.__name__: error for error in errors}
        self._cpu_seconds = cpu_seconds
        self._seconds = seconds
        self._children: dict[int, _Child] = {}
        self._idle: list[_Child] = []
        self._discarded: dict[_Child, float] = {}
        self._number = 0
        self._template: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the template. This does not wait until it is ready."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
        with theirs:
            self._template = subprocess.Popen(
                [sys.executable, "-P", "-c", "from app.serving.children import main; main()"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},  # forking needs a single thread
                start_new_session=True,  # Ctrl-C in a terminal reaches the service only
            )
        asyncio.get_running_loop().add_reader(self._control, self._read_notices)

    def stop(self) -> None:
        """End the template and the children. Calls in progress fail."""
        if self._template:
            template, self._template = self._template, None
            asyncio.get_running_loop().remove_reader(self._control)
            self._control.close()  # the template ends, and the kernel kills its children
            with suppress(subprocess.TimeoutExpired):
                template.wait(0.5)
            template.kill()
            template.wait()
            self._lose_all()

    def stalled(self) -> float:
        """Seconds since a child had to end that has not ended, or was not even started; 0 if there is none."""
        return time.monotonic() - min(self._discarded.values(), default=time.monotonic())

    async def run(self, function: Callable[..., Result], *arguments: Any, data: bytes, memory: int) -> Result:
        """Call a function in a child. A cancelled call kills its child.

        Args:
            function: of a module, called with the data and the arguments.
            arguments: what can be pickled.
            data: of the file.
            memory: bytes that the call may allocate. More raises MemoryError in the child.

        Raises:
            ChildEnded: the child did not send a result.
            ChildError: the function raised an exception that is none of `errors`.
            Exception: one of `errors`.
        """
        loop = asyncio.get_running_loop()
        child = self._idle.pop() if self._idle else self._fork()
        call = pickle.dumps((function, arguments, tuple(self._errors.values())))
        head = _CALL.pack(memory, self._cpu_seconds, self._seconds, len(call), len(data)) + call
        try:
            await loop.sock_sendall(child.connection, head)
            await loop.sock_sendall(child.connection, data)
            mark, reusable, values, rest = _RESULT.unpack(await self._receive(child, _RESULT.size))
            if mark != _MARK or values + rest > memory:
                raise ValueError("this is no result")
            content = memoryview(await self._receive(child, values + rest))
            value = json.loads(bytes(content[:values]))
        except (OSError, ValueError):
            self._discard(child)
            raise ChildEnded(await asyncio.shield(child.ended)) from None
        except BaseException:
            self._discard(child)
            raise
        if reusable:
            self._idle.append(child)
        else:
            child.connection.close()
        if isinstance(value, dict) and (error := value.get("error")):
            if error in self._errors:
                raise self._errors[error](value["message"])
            raise ChildError(value["message"])
        return value, bytes(content[values:])

    async def _receive(self, child: _Child, size: int) -> bytearray:
        loop, content = asyncio.get_running_loop(), bytearray(size)
        rest = memoryview(content)
        while rest:
            received = await loop.sock_recv_into(child.connection, rest)
            if not received:
                raise OSError("the child has ended")
            rest = rest[received:]
        return content

    def _fork(self) -> _Child:
        if self._template is None or self._template.poll() is not None:
            self.stop()
            self.start()
        self._number += 1
        own, theirs = socket.socketpair()
        own.setblocking(False)
        with theirs:
            command = _COMMAND.pack(b"s", self._number)
            try:
                socket.send_fds(self._control, [command], [theirs.fileno()])
            except OSError:  # the template is about to end
                self.stop()
                self.start()
                socket.send_fds(self._control, [command], [theirs.fileno()])
        child = _Child(self._number, own, asyncio.get_running_loop().create_future())
        self._children[child.number] = child
        return child

    def _discard(self, child: _Child) -> None:
        child.connection.close()
        if not child.ended.done():
            self._discarded[child] = time.monotonic()
            child.ended.add_done_callback(lambda _: self._discarded.pop(child, None))
            with suppress(OSError):
                self._control.send(_COMMAND.pack(b"k", child.number))

    def _read_notices(self) -> None:
        try:
            while notice := self._control.recv(_NOTICE.size):
                number, status = _NOTICE.unpack(notice)
                child = self._children.pop(number)
                if not child.ended.done():
                    child.ended.set_result(os.waitstatus_to_exitcode(status))
                if child in self._idle:
                    self._idle.remove(child)
                    child.connection.close()
        except BlockingIOError:
            return
        except OSError:
            pass
        asyncio.get_running_loop().remove_reader(self._control)  # the template has ended
        self._lose_all()

    def _lose_all(self) -> None:
        for child in self._children.values():
            if not child.ended.done():
                child.ended.set_result(None)
        for child in self._idle:
            child.connection.close()
        self._children, self._idle = {}, []


# In the template and the children


def main() -> Never:
    """The template: fork children on command until the service ends."""
    import model  # noqa: F401  # what the children need

    limit_kept_memory()
    os.nice(_NICE)
    control = socket.socket(fileno=0)
    numbers: dict[int, int] = {}

    def reap(*_: object) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                control.send(_NOTICE.pack(numbers.pop(pid), status))

    signal.signal(signal.SIGCHLD, reap)
    gc.collect()
    gc.freeze()  # so that the children share its memory
    while True:
        message = b""
        with suppress(OSError):
            message, descriptors, _, _ = socket.recv_fds(control, _COMMAND.size, 1)
        if not message:  # the service has ended
            os._exit(0)
        command, number = _COMMAND.unpack(message)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # `reap` changes the numbers
        if command == b"k":
            for pid in [pid for pid, its in numbers.items() if its == number]:
                os.kill(pid, signal.SIGKILL)
        else:
            template = os.getpid()
            try:
                pid = os.fork()
            except OSError:  # no memory or too many processes
                control.send(_NOTICE.pack(number, _NOT_STARTED))
            else:
                if not pid:
                    _be_a_child(descriptors[0], template)
                numbers[pid] = number
            os.close(descriptors[0])
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])


def _be_a_child(descriptor: int, template: int) -> Never:
    """Serve calls until the service closes the socket."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != template:
        os._exit(1)
    connection = socket.socket(fileno=os.dup(descriptor))
    with Path(os.devnull).open("r+b") as nothing:
        for stream in range(3):  # libtiff and others print
            os.dup2(nothing.fileno(), stream)
    os.closerange(3, connection.fileno())
    os.closerange(connection.fileno() + 1, 256)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    began = _address_space()
    reusable = True
    while reusable and (head := connection.recv(_CALL.size, socket.MSG_WAITALL)):
        memory, cpu_seconds, seconds, call, size = _CALL.unpack(head)
        resource.setrlimit(resource.RLIMIT_AS, (began + memory, resource.RLIM_INFINITY))
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + 1 + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        value, content = _call(connection, call, size)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        reusable = memory <= _KEPT and _address_space() - began < _KEPT // 4
        values = json.dumps(value).encode()
        connection.sendall(_RESULT.pack(_MARK, reusable, len(values), len(content)) + values + content)
    os._exit(0)


def _call(connection: socket.socket, call: int, size: int) -> Result:
    import traceback

    errors: tuple[type[Exception], ...] = ()
    try:
        function, arguments, errors = pickle.loads(connection.recv(call, socket.MSG_WAITALL))  # noqa: S301 # the service's
        result: Result = function(connection.recv(size, socket.MSG_WAITALL) if size else b"", *arguments)
    except errors as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    except Exception as error:
        return {"error": type(error).__name__, "message": traceback.format_exc()}, b""
    return result


def _address_space() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
