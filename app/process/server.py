"""The server of one process: uvicorn with a graceful drain."""

import asyncio
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Mapping
from functools import partial
from types import FrameType
from typing import NamedTuple

import uvicorn
from fastapi import FastAPI

from app.engine.models import Load
from app.engine.remote import RemoteEngine
from app.main import bundle_folders, create_app
from app.process.link import Link
from app.process.protocol import http_protocol
from app.process.sockets import (
    CannotListen,
    describe_address,
    has_pending_connections,
    ignore_new_connections,
    listen,
)
from app.serving.service import Service
from app.settings import Settings
from model import ModelError

logger = logging.getLogger("tenfold")

# Seconds for TCP handshakes to complete before the listening socket is closed.
_HANDSHAKE = 0.1
# Longest time in seconds to empty the accept queue, where new connections cannot be kept out of it.
_ACCEPT_TIMEOUT = 1.0


class Server(uvicorn.Server):
    """Uvicorn with a graceful drain.

    On SIGTERM /readyz turns to 503 and the server continues to answer for `drain_delay` seconds, so that load balancers
    can take it out of rotation. Then it stops listening, finishes the requests that it has, and ends. SIGINT skips the
    delay. A second signal skips the requests.

    On SIGHUP it loads the bundle of each model again.

    A front obeys its supervisor through a link. The message "drain" starts the drain without a limit in time. The end
    of the link ends the drain; if no message came before, the supervisor has died, and the front drains as on SIGTERM.

    Args:
        config: uvicorn's configuration.
        service: enters its draining state.
        drain_delay: in seconds.
        supervisor: the link to the supervisor, which then owns the listening socket.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        drain_delay: float,
        *,
        supervisor: Link | None = None,
    ) -> None:
        super().__init__(config)
        self._service = service
        self._drain_delay = drain_delay
        self._supervisor = supervisor
        self._owns_socket = supervisor is None
        self._signals: list[int] = []
        self._reload = False
        self._draining = False
        self._exit_at = math.inf
        self._reloading: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle a signal: set flags only.

        Python calls this between two bytecodes of whatever the main thread runs, perhaps while it holds a lock.
        """
        if self._draining or self._signals:
            self.force_exit = self.should_exit = True
        self._signals.append(sig)

    def handle_reload(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle SIGHUP: set a flag only."""
        self._reload = True

    def exit_after(self, seconds: float) -> None:
        """Stop listening in so many seconds; of several calls the earliest end counts."""
        self._exit_at = min(self._exit_at, time.monotonic() + seconds)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application and accept connections."""
        listening = list(sockets or [])
        await super().startup([])
        if self._owns_socket:
            logger.info("Uvicorn running on %s (Press CTRL+C to quit)", describe_address(listening))
        await self._accept(listening)

    async def on_tick(self, counter: int) -> bool:
        if self._supervisor:
            self._obey(self._supervisor)
        if self._reload:
            self._reload = False
            self._reloading = asyncio.create_task(self._service.engine.reload())
        if self._signals and not self._draining:
            self._drain(self._drain_delay if self._signals[0] == signal.SIGTERM else 0.0)
        if time.monotonic() >= self._exit_at:
            return True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept what is in the accept queue, stop listening, finish the requests."""
        listening = [each.fileno() for server in self.servers for each in server.sockets]
        if self._owns_socket:
            for descriptor in listening:
                ignore_new_connections(descriptor)
        ends = time.monotonic() + _ACCEPT_TIMEOUT
        await asyncio.sleep(_HANDSHAKE)
        while any(map(has_pending_connections, listening)) and time.monotonic() < ends:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)

    async def _accept(self, listening: list[socket.socket]) -> None:

        def protocol() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]
                config=self.config, server_state=self.server_state, app_state=self.lifespan.state
            )

        loop, backlog = asyncio.get_running_loop(), self.config.backlog
        for each in listening:
            # For a Unix socket too: create_unix_server would remove its file at the end, which other fronts share.
            self.servers.append(await loop.create_server(protocol, sock=each, backlog=backlog))

    def _obey(self, supervisor: Link) -> None:
        supervisor.report_alive()
        if ["drain"] in supervisor.receive():
            self._drain(math.inf)
        if supervisor.ended:
            self._supervisor = None
            self._drain(0.0 if self._draining else self._drain_delay)

    def _drain(self, delay: float) -> None:
        self._draining = True
        self._service.drain()
        self.exit_after(delay)


def config_of(settings: Settings, app: FastAPI) -> uvicorn.Config:
    """Uvicorn's configuration for the settings and the application of `create_app`."""
    return uvicorn.Config(
        app,
        workers=1,  # uvicorn would read WEB_CONCURRENCY, which may be empty
        # The clients of a Unix socket are trusted, as in gunicorn.
        forwarded_allow_ips=os.environ.get("FORWARDED_ALLOW_IPS") or ("*" if settings.uds else "127.0.0.1,::1"),
        access_log=False,
        log_config=None,
        server_header=False,
        http=http_protocol(
            settings.timeout,
            app.state.service.telemetry,
            upload_timeout=settings.upload_timeout,
            max_connections=settings.max_connections,
            hold_bytes=partial(app.state.service.limits.hold_bytes, ""),
        ),
        ws="none",
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.drain_timeout,
    )


def reloads_on_sighup() -> bool:
    """Whether SIGHUP loads the bundles again. With a terminal, it means that the terminal was closed."""
    return hasattr(signal, "SIGHUP") and not os.isatty(0)


class Front(NamedTuple):
    """What a front shares with its supervisor and the other processes of the service.

    Attributes:
        listening: the sockets that all fronts accept from.
        engine: path of the Unix socket of the engine process.
        supervisor: the link to the supervisor.
    """

    listening: list[socket.socket]
    engine: str
    supervisor: Link


def serve(
    settings: Settings,
    *,
    load: Mapping[str, Load] | None = None,
    front: Front | None = None,
) -> int:
    """Serve until a signal ends it, or the service fails.

    Args:
        settings: of the service.
        load: see create_app.
        front: for one of several fronts, what it shares with the others.

    Returns:
        The exit code: 0 after a drain; 1 if a model cannot be loaded, an engine stopped working or the address
        cannot be listened on.
    """
    failed = False

    def give_up() -> None:
        nonlocal failed
        failed = True
        server.exit_after(settings.drain_delay)

    try:
        engine = RemoteEngine(front.engine, load or bundle_folders(settings)) if front else None
        app = create_app(settings, load=load, on_failure=give_up, engine=engine)
    except ModelError as error:
        logger.error("the models cannot be loaded: %s", error)
        return 1
    server = Server(
        config_of(settings, app),
        app.state.service,
        settings.drain_delay,
        supervisor=front.supervisor if front else None,
    )
    if front is None and reloads_on_sighup():
        signal.signal(signal.SIGHUP, server.handle_reload)
    try:
        server.run(front.listening if front else listen(settings))
    except CannotListen as error:
        logger.error("%s", error)
        return 1
    return 1 if failed else 0
