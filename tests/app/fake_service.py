"""Services with a fake engine, as processes: python -m tests.app.fake_service MODE.

MODE is one of
    works: with TENFOLD_WORKERS several processes, which are replaced after SILENCE seconds without a message; with
        LOAD_AFTER, the model is loaded once this file exists; with SLOW, each batch takes so many seconds
    fails, hangs: the engine does so from the first image on; with TENFOLD_WORKERS several processes
    interrupted: it receives SIGTERM while it updates a metric
    crashes: a supervisor whose engine process is killed at once, with fronts that sleep
"""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

from app.main import create_app
from app.process.fronts import serve_part, supervise
from app.process.server import Server, config_of, serve
from app.process.sockets import listen
from app.settings import Settings
from app.telemetry.logs import logging_to_stderr
from app.telemetry.metrics import Telemetry
from model import Classifier
from tests.app.fakes import CARD, FakeEngine, fake_classifier

CRASH = "import os, sys; sys.stdin.read() if sys.argv[1] == 'front' else os.kill(os.getpid(), 9)"


class Interrupting(float):
    """A number that sends SIGTERM to this process when it is added to another."""

    def __radd__(self, other: float) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)  # Python handles the signal here
        return other + float(self)


async def serve_and_interrupt(settings: Settings) -> None:
    """Serve, and receive SIGTERM while the event loop updates a metric, that is, while it holds the metric's lock."""
    app = create_app(settings, load={CARD.name: lambda: fake_classifier(FakeEngine())})
    server = Server(config_of(settings, app), app.state.service, settings.drain_delay)

    async def interrupt() -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        telemetry: Telemetry = app.state.service.telemetry
        telemetry.image_classified(
            CARD.name,
            label="cat",
            confidence=Interrupting(0.5),
            verdict="accepted",
            stages={},
        )

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(interrupt())
        tasks.create_task(server.serve(listen(settings)))


def serve_fake_engine(settings: Settings, mode: str, *arguments: str) -> int:
    """Serve in one process or several; as a child of a supervisor if there are arguments."""
    engine = FakeEngine()
    engine.seconds = float(os.environ.get("SLOW", "0"))
    if mode == "hangs":
        engine.block()
    elif mode == "fails":
        engine.failure = RuntimeError("CUDA on fire")

    def load_fake() -> Classifier:
        while (file := os.environ.get("LOAD_AFTER")) and not Path(file).exists():
            time.sleep(0.01)
        return fake_classifier(engine)

    load = {CARD.name: load_fake}
    if arguments:
        return serve_part(settings, arguments, load=load)
    if settings.workers > 1:
        command = (sys.executable, "-m", "tests.app.fake_service", mode)
        return supervise(settings, command, silence=float(os.environ.get("SILENCE", "10")))
    return serve(settings, load=load)


def main(mode: str, *arguments: str) -> int:
    """Run a service and return its exit code."""
    settings = Settings()
    with logging_to_stderr(settings.log_level, settings.log_format):
        if mode == "interrupted":
            asyncio.run(serve_and_interrupt(settings))
            return 0
        if mode == "crashes":
            return supervise(settings, (sys.executable, "-c", CRASH))
        return serve_fake_engine(settings, mode, *arguments)


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))
