"""python -m app: serve with our settings, signals and drain."""

import asyncio
import ctypes
import logging
import os
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from types import FrameType

import uvicorn
from pydantic import ValidationError

from app.main import create_app
from app.service import Service
from app.settings import Settings

# Seconds for the request to come in on a connection that was made just before the service stopped listening.
_HEARING = 0.25


class Server(uvicorn.Server):
    """Uvicorn, but SIGTERM first turns /readyz to 503 and goes on answering, so that load balancers can look away."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_delay: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_delay = drain_delay
        self._exit_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Drain on SIGTERM; at once, but still gracefully, on Ctrl-C; a second signal does not wait for answers."""
        if self._exit_at is None:
            self._service.drain()
            self._exit_at = time.monotonic() + (self._drain_delay if sig == signal.SIGTERM else 0.0)
        else:
            self.force_exit = self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        if self._exit_at is not None and time.monotonic() >= self._exit_at:
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let nobody else connect, hear out who has, then stop listening; uvicorn would hang up on them."""
        for server in self.servers:
            for listening in server.sockets:
                refuse_newcomers(listening.fileno())
        await asyncio.sleep(_HEARING)
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


def main() -> int:
    """Serve until told to stop.

    Returns:
        The exit code: 0 after a drain, 1 when the model cannot be loaded or nothing can listen there, 2 when a setting
        is wrong.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            names = [f"TENFOLD_{str(part).upper()}: " for part in problem["loc"]]  # none where settings disagree
            print(f"error: {''.join(names)}{problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s")

    failed = False

    def give_up() -> None:
        nonlocal failed
        failed = server.should_exit = True

    app = create_app(settings, on_failure=give_up)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=settings.drain_timeout,
    )
    server = Server(config, app.state.service, settings.drain_delay)
    try:
        server.run()
    except SystemExit:  # uvicorn has logged why it cannot listen
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    code = main()
    # Not sys.exit: it would wait for the engine's thread, which may still be loading, or stall for good.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)
