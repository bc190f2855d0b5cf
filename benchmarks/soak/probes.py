"""Asking /livez and /readyz all the while, in a thread of its own: the load's clients must not slow it down."""

import http.client
import threading
import time
from collections import Counter

_EVERY = 0.1
_PATIENCE = 5.0


class Probes:
    """A load balancer's probes.

    Attributes:
        seconds: how long each answer took.
        failed: those that were no 200, as "path: what".
    """

    def __init__(self, port: int) -> None:
        self.seconds: list[float] = []
        self.failed: Counter[str] = Counter()
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probes", daemon=True)

    def __enter__(self) -> "Probes":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        connections = {path: self._connection() for path in ("/livez", "/readyz")}
        due = time.monotonic()
        while not self._stop.is_set():
            for path, connection in connections.items():
                began = time.monotonic()
                try:
                    connection.request("GET", path)
                    answer = connection.getresponse()
                    answer.read()
                    outcome = "" if answer.status == 200 else str(answer.status)
                except (OSError, http.client.HTTPException) as error:
                    outcome = type(error).__name__
                    connection.close()  # the next request connects anew
                self.seconds.append(time.monotonic() - began)
                if outcome:
                    self.failed[f"{path}: {outcome}"] += 1
            due = max(due + _EVERY, time.monotonic())
            self._stop.wait(due - time.monotonic())
        for connection in connections.values():
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
