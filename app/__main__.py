"""python -m app: serve in one process or several."""

import ctypes
import os
import socket
import sys
import warnings
from contextlib import suppress
from typing import Never

from pydantic import ValidationError

from app.process.cpus import default_threads
from app.process.server import serve
from app.process.workers import supervise
from app.settings import Settings, error_messages
from app.telemetry.logs import logging_to_stderr

# malloc.h
_M_ARENA_MAX = -8


def share_one_heap() -> None:
    """Make glibc use one heap for all threads.

    With a heap per thread, each keeps the memory of the largest image that its thread ever decoded: over 10,000
    hostile uploads memory rose to 12 % above its start. With one heap it stays level. Other C libraries lack mallopt.
    """
    with suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def main(arguments: list[str]) -> int:
    """Serve until a signal ends it.

    Args:
        arguments: none; for a worker, the file descriptor of the socket that it shares with the other workers. The
            supervisor controls the worker through its standard input.

    Returns:
        The exit code: 0 after a drain; 1 if the model cannot be loaded, the engine stopped working or the address
        cannot be listened on; 2 if a setting is invalid.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for message in error_messages(error):
            print(f"error: {message}", file=sys.stderr)
        return 2
    # Pillow warns of oddities in files that it reads nevertheless, thousands of times for some.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with logging_to_stderr(settings.log_level, settings.log_format):
        if arguments:
            return serve(settings, listening=socket.socket(fileno=int(arguments[0])), control=sys.stdin.fileno())
        if settings.workers > 1:
            return supervise(settings)
        return serve(settings.model_copy(update={"threads": settings.threads or default_threads()}))


def run(arguments: list[str]) -> Never:
    """Run `main` and end the process with its exit code."""
    share_one_heap()
    code = main(arguments)
    # sys.exit would wait for the engine's thread, which may still be loading or be stalled.
    os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
