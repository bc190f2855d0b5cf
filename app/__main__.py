"""python -m app: serve in one process or several."""

import logging
import os
import sys
import warnings
from collections.abc import Collection
from typing import Never

from pydantic import ValidationError

from app.cpus import default_threads
from app.memory import limit_kept_memory
from app.process.fronts import front_count, serve_part, supervise
from app.process.server import serve
from app.settings import Settings, error_messages, unknown_variables
from app.telemetry.logs import logging_to_stderr

logger = logging.getLogger("tenfold")

_USAGE = """usage: python -m app

Serve the model over HTTP. The settings are environment variables, such as TENFOLD_PORT=8110: see docs/settings.md.
tenfold serve takes the most common ones as options."""


def main(arguments: list[str], options: Collection[str] = ()) -> int:
    """Serve until a signal ends it.

    Args:
        arguments: none; for a child of a supervisor, see `serve_part`.
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
            return serve_part(settings, arguments)
        for warning in unknown_variables():
            logger.warning(warning)
        if front_count(settings) > 1:
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
    if arguments and arguments[0] not in ("front", "engine"):
        print(f"error: unknown argument {arguments[0]}\n{_USAGE}", file=sys.stderr)
        sys.exit(2)
    limit_kept_memory()
    code = main(arguments, options)
    # sys.exit would wait for the engine's thread, which may still be loading or be stalled.
    os._exit(code)


if __name__ == "__main__":
    run(sys.argv[1:])
