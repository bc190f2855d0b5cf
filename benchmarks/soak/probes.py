"""Regular requests to /livez and /readyz, from a thread of its own so that the load does not delay them."""

import http.client
import threading
import time
from collections import Counter

_INTERVAL = 0.1
_TIMEOUT = 5.0


class Probes:
    """The probes of a load balancer.

    Attributes:
        latencies: seconds of each probe.
        failed: probes without status 200, as "path: reason".
    """

    def __init__(self, port: int) -> None:
        self.latencies: list[float] = []
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
                started = time.monotonic()
                try:
                    connection.request("GET", path)
                    response = connection.getresponse()
                    response.read()
                    failure = "" if response.status == 200 else str(response.status)
                except (OSError, http.client.HTTPException) as error:
                    failure = type(error).__name__
                    connection.close()  # the next request opens it again
                self.latencies.append(time.monotonic() - started)
                if failure:
                    self.failed[f"{path}: {failure}"] += 1
            due = max(due + _INTERVAL, time.monotonic())
            self._stop.wait(due - time.monotonic())
        for connection in connections.values():
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
