"""python -m app: serve, in one process or several."""

import ctypes
import os
import socket
import sys
from contextlib import suppress

from pydantic import ValidationError

from app.logs import logging_to_stderr
from app.server import serve
from app.settings import Settings
from app.workers import supervise

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
        for problem in error.errors():
            names = [f"TENFOLD_{str(part).upper()}: " for part in problem["loc"][:1]]  # none where settings disagree
            print(f"error: {''.join(names)}{problem['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    with logging_to_stderr(settings.log_level, settings.log_format):
        if arguments:
            return serve(settings, listening=socket.socket(fileno=int(arguments[0])), parent=os.getppid())
        return serve(settings) if settings.workers == 1 else supervise(settings)


if __name__ == "__main__":
    share_one_heap()
    code = main(sys.argv[1:])
    # Not sys.exit: it would wait for the engine's thread, which may still be loading, or stall for good.
    sys.stderr.flush()
    os._exit(code)
