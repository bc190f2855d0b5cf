"""python -m app: serve with our settings, signals and drain."""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from types import FrameType

import uvicorn
from pydantic import ValidationError

from app.main import create_app
from app.service import Service
from app.settings import Settings

# Seconds for the request to come in on a connection that was accepted just before the service stopped listening.
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
        """Stop listening, then hear out who has connected by then; uvicorn would hang up on them.

        The kernel has shaken hands with more of them than the event loop has accepted: those are taken over too.
        """
        loop = asyncio.get_running_loop()
        spares = [socket.socket(fileno=os.dup(one.fileno())) for server in self.servers for one in server.sockets]
        for server in self.servers:
            server.close()
        await asyncio.sleep(0)  # the loop lets go of its own
        connections = [connection for spare in spares for connection in _accepted(spare)]
        for connection in connections:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(_HEARING)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes one for each connection."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def _accepted(listening: socket.socket) -> list[socket.socket]:
    """All connections that wait at a socket, which is then closed."""
    connections = []
    with listening:
        listening.setblocking(False)
        try:
            while True:
                connections.append(listening.accept()[0])
        except BlockingIOError:
            return connections


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
