"""The process that owns the models, where several fronts share them."""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Mapping

from app.engine.host import Host
from app.engine.models import Load
from app.main import create_engine
from app.process.link import Link
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import ModelError

logger = logging.getLogger("tenfold")

_POLL = 0.1


def serve_engine(
    settings: Settings, listening: socket.socket, supervisor: Link, *, load: Mapping[str, Load] | None = None
) -> int:
    """Serve the models to the fronts, until the supervisor ends it.

    The end of the link ends it too, as soon as no front is connected. The message "drain" ends a swap in progress, and
    "reload" loads the bundles again. The message "bundle" with a name and a folder reports the weights that a new
    engine process must load.

    Args:
        settings: of the service.
        listening: the Unix socket that the fronts connect to.
        supervisor: the link.
        load: see create_app.

    Returns:
        The exit code: 0 after the end of the link; 1 if a model cannot be loaded or an engine stopped working.
    """
    import uvloop  # which Windows lacks, where one process does everything

    for sig in (signal.SIGINT, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)  # the supervisor handles them
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(settings, listening, supervisor, load))


async def _serve(
    settings: Settings, listening: socket.socket, supervisor: Link, load: Mapping[str, Load] | None
) -> int:
    failed = asyncio.Event()
    try:
        core = create_engine(
            settings,
            Telemetry(),
            load,
            failed.set,
            lambda name, folder: supervisor.send("bundle", name, str(folder)),
        )
    except ModelError as error:
        logger.error("the models cannot be loaded: %s", error)
        return 1
    host = Host(core)
    await host.start(listening)
    ends = float("inf")
    reloading: asyncio.Task[None] | None = None
    while not failed.is_set():
        supervisor.report_alive()
        for message in supervisor.receive():
            if message == ["drain"]:
                core.drain()
            elif message == ["reload"]:
                reloading = asyncio.create_task(core.reload())
        if supervisor.ended and ends == float("inf"):
            ends = time.monotonic() + settings.drain_delay + settings.drain_timeout + 5
        if time.monotonic() >= ends or (supervisor.ended and not host.fronts):
            break
        await asyncio.sleep(_POLL)
    if reloading:
        reloading.cancel()
    await host.stop()
    return 1 if failed.is_set() else 0
