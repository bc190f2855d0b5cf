"""python -m app: serve, in one process or several."""

import ctypes
import os
import socket
import sys
from contextlib import suppress
from typing import Never

from pydantic import ValidationError

from app.process.server import serve
from app.process.workers import supervise
from app.settings import Settings, error_messages
from app.telemetry.logs import logging_to_stderr

# malloc.h
_M_ARENA_MAX = -8


def share_one_heap() -> None:
    """Have glibc keep one heap for all threads.

    With one a thread, each keeps the room of the largest picture that its thread ever decoded: over 10,000 hostile
    uploads memory went up to 12 % above its start and down again; now it stays level. Other C libraries have no such
    thing.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def main(arguments: list[str]) -> int:
    """Serve until told to stop.

    Args:
        arguments: none; or, for a worker, the file descriptor of the socket that it shares with the others.

    Returns:
        The exit code: 0 after a drain, 1 when the model cannot be loaded, the engine stopped working or nothing can
        listen there, 2 when a setting is wrong.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for complaint in error_messages(error):
            print(f"error: {complaint}", file=sys.stderr)
        return 2
    with logging_to_stderr(settings.log_level, settings.log_format):
        if arguments:
            return serve(settings, listening=socket.socket(fileno=int(arguments[0])), parent=os.getppid())
        return serve(settings) if settings.workers == 1 else supervise(settings)


def run(arguments: list[str]) -> Never:
    """As `main`, and end the process."""
    share_one_heap()
    code = main(arguments)
    # Not sys.exit: it would wait for the engine's thread, which may still be loading, or stall for good.
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
