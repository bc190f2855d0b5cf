"""The server of one process: uvicorn, with our signals and our drain."""

import asyncio
import ctypes
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn

from app.main import create_app
from app.process.protocol import protocol_with
from app.serving.service import Service
from app.settings import Settings
from model import Classifier

# Seconds in which the event loop accepts the connections that have been made.
_ACCEPTING = 0.1


class Server(uvicorn.Server):
    """Uvicorn, but SIGTERM first turns /readyz to 503 and goes on answering, so that load balancers can look away.

    Args:
        config: of uvicorn.
        service: is told to drain.
        drain_delay: seconds that it goes on answering.
        parent: the process without which it drains.
    """

    def __init__(
        self, config: uvicorn.Config, service: Service, drain_delay: float, *, parent: int | None = None
    ) -> None:
        super().__init__(config)
        self._parent = parent
        self._service = service
        self._drain_delay = drain_delay
        self._exit_at: float | None = None
        self._told = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain on SIGTERM; at once, but still gracefully, on Ctrl-C; a second signal does not wait for answers."""
        if not self._told:
            self._told = True
            self._service.drain()
            self.exit_after(self._drain_delay if sig == signal.SIGTERM else 0.0)
        else:
            self.force_exit = self.should_exit = True

    def exit_after(self, seconds: float) -> None:
        """Go on answering for so many seconds, and then end; the first call counts."""
        if self._exit_at is None:
            self._exit_at = time.monotonic() + seconds

    async def on_tick(self, counter: int) -> bool:
        if self._parent is not None and os.getppid() != self._parent and not self._told:
            self.handle_exit(signal.SIGTERM, None)
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody else connect, accept who has, then stop listening; uvicorn would hang up on them."""
        for server in self.servers:
            for listening in server.sockets:
                refuse_newcomers(listening.fileno())
        await asyncio.sleep(_ACCEPTING)
        await super().shutdown(sockets)


def refuse_newcomers(listening: int) -> None:
    """Make the kernel ignore attempts to connect to a socket, given by its file descriptor.

    To close it straight away would reset the connections that wait to be accepted, though their callers have been
    told that they are through. Who is ignored tries again after a second, and is refused if it is closed by then.
    Elsewhere than on Linux nothing happens.
    """
    if sys.platform != "linux":
        return
    instructions = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in _IGNORE_SYN))
    program = struct.pack("HP", len(_IGNORE_SYN), ctypes.addressof(instructions))
    with socket.socket(fileno=os.dup(listening)) as duplicate, suppress(OSError):  # some sandboxes have no filters
        duplicate.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


_SO_ATTACH_FILTER = 26
# Classic BPF, as in linux/filter.h: operation, steps on if true, steps on if false, operand.
_IGNORE_SYN = (
    (0x30, 0, 0, 13),  # load the byte of TCP flags
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # is it SYN alone?
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)


def config_of(settings: Settings, app: object = None) -> uvicorn.Config:
    """Uvicorn's configuration for the settings."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        http=protocol_with(settings.timeout),
        ws="none",
        timeout_graceful_shutdown=settings.drain_timeout,
    )


def serve(
    settings: Settings,
    *,
    load: Callable[[], Classifier] | None = None,
    listening: socket.socket | None = None,
    parent: int | None = None,
) -> int:
    """Serve until told to stop, or until the service gives up.

    Args:
        settings: of the service.
        load: see create_app.
        listening: a bound socket, instead of the host and port of the settings.
        parent: the process without which it drains.

    Returns:
        The exit code: 0 after a drain, 1 when the model cannot be loaded, the engine stopped working or nothing can
        listen there.
    """
    failed = False

    def give_up() -> None:
        nonlocal failed
        failed = True
        server.exit_after(settings.drain_delay)

    app = create_app(settings, load=load, on_failure=give_up)
    server = Server(config_of(settings, app), app.state.service, settings.drain_delay, parent=parent)
    try:
        server.run([listening] if listening else None)
    except SystemExit:  # uvicorn has logged why it cannot listen
        return 1
    return 1 if failed else 0
