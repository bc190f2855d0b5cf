"""A service whose engine stops working, as a process: python -m tests.app.faulty fails|hangs."""

import os
import sys

from app.process.server import serve
from app.settings import Settings
from app.telemetry.logs import logging_to_stderr
from tests.app.fakes import FakeEngine, fake_classifier


def main(way: str) -> int:
    """Serve with a fake engine that `fails` or `hangs` from the first picture on."""
    engine = FakeEngine()
    if way == "hangs":
        engine.block()
    else:
        engine.failure = RuntimeError("CUDA on fire")
    settings = Settings()
    with logging_to_stderr(settings.log_level, settings.log_format):
        return serve(settings, load=lambda: fake_classifier(engine))


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))
