"""Threads that compute, at a lower priority than the event loop's."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

# Of the threads that compute; the event loop's is 0.
_NICE = 10


def compute_threads(count: int, name: str) -> ThreadPoolExecutor:
    """An executor whose threads let the event loop run first, so that probes and refusals do not wait for inference."""
    return ThreadPoolExecutor(count, name, _lower_priority)


def _lower_priority() -> None:
    if sys.platform == "linux":  # where each thread has its own priority; the threads that it starts inherit it
        thread = threading.get_native_id()
        # Never a higher priority than it has: that needs privileges.
        os.setpriority(os.PRIO_PROCESS, thread, max(_NICE, os.getpriority(os.PRIO_PROCESS, thread)))
