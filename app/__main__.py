"""python -m app: serve in one process or several."""

import ctypes
import logging
import os
import socket
import sys
import warnings
from collections.abc import Collection
from contextlib import suppress
from typing import Never

from pydantic import ValidationError

from app.cpus import default_threads
from app.process.server import serve
from app.process.workers import supervise, worker_count
from app.settings import Settings, error_messages, unknown_variables
from app.telemetry.logs import logging_to_stderr

logger = logging.getLogger("tenfold")

_USAGE = """usage: python -m app

Serve the model over HTTP. The settings are environment variables, such as TENFOLD_PORT=8110: see docs/settings.md.
tenfold serve takes the most common ones as options."""

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def limit_kept_memory() -> None:
    """Make glibc return the memory of decoded images to the operating system. Other C libraries lack mallopt.

    By default each thread has a heap, which keeps the memory of the largest image that the thread ever decoded, and
    glibc raises the size from which blocks are returned at once as large blocks are freed. Over 25,000 hostile uploads
    memory rose from 199 to 272 MB with one heap and glibc's sizes; with these sizes it rose from 194 to 203 MB.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, 512 << 10)
        mallopt(_M_TRIM_THRESHOLD, 8 << 20)


def main(arguments: list[str], options: Collection[str] = ()) -> int:
    """Serve until a signal ends it.

    Args:
        arguments: none; for a worker, the file descriptors of the sockets that it shares with the other workers. The
            supervisor controls the worker through its standard input.
        options: names of the settings that an option of the command line set.

    Returns:
        The exit code: 0 after a drain; 1 if the model cannot be loaded, the engine stopped working or the address
        cannot be listened on; 2 if a setting is invalid.
    """
    try:
        settings = Settings()
    except ValidationError as error:
        for message in error_messages(error, options):
            print(f"error: {message}", file=sys.stderr)
        return 2
    # Pillow warns of oddities in files that it reads nevertheless, thousands of times for some.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with logging_to_stderr(settings.log_level, settings.log_format):
        if arguments:
            listening = [socket.socket(fileno=int(each)) for each in arguments]
            return serve(settings, listening=listening, control=socket.socket(fileno=0))
        for warning in unknown_variables():
            logger.warning(warning)
        if worker_count(settings) > 1:
            return supervise(settings)
        return serve(settings.model_copy(update={"workers": 1, "threads": settings.threads or default_threads()}))


def open_missing_streams() -> None:
    """Open /dev/null as each of standard input, output and error that the process was started without.

    Otherwise the next files and sockets get their descriptors.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode, number in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def run(arguments: list[str], options: Collection[str] = ()) -> Never:
    """Run `main` and end the process with its exit code."""
    open_missing_streams()
    if arguments and arguments[0] in ("-h", "--help"):
        print(_USAGE)
        sys.exit(0)
    if arguments and not arguments[0].isdigit():
        print(f"error: unknown argument {arguments[0]}\n{_USAGE}", file=sys.stderr)
        sys.exit(2)
    limit_kept_memory()
    code = main(arguments, options)
    # sys.exit would wait for the engine's thread, which may still be loading or be stalled.
    os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
