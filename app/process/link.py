"""Messages between the supervisor and its child processes, one line of JSON each, over a pair of connected sockets."""

import json
import logging
import socket
import time
from typing import Any

logger = logging.getLogger("tenfold")

_READ = 65_536
# Seconds between two messages of a child that say only that its event loop runs.
_ALIVE_INTERVAL = 1.0

ALIVE = ["alive"]
"""The message of a child whose event loop runs."""


class Link:
    """One end of the pair. Neither `send` nor `receive` blocks.

    Args:
        connection: the socket, which the link then owns.

    Attributes:
        ended: whether the other process has closed its end, or has ended.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.ended = False
        self._connection = connection
        self._unread = b""
        self._alive_at = 0.0

    def send(self, *message: str) -> None:
        """Send a message. It is lost if the other process has ended, or has read nothing for thousands of messages."""
        line = json.dumps(message).encode() + b"\n"
        try:
            sent = self._connection.send(line)
        except BlockingIOError:
            sent = 0
        except OSError:  # it has ended
            return
        if sent < len(line):  # half a line cannot be taken back
            logger.error("another process of the service does not read its messages")
            self.close()

    def report_alive(self) -> None:
        """Send `ALIVE` if the last one was a second ago. Call this regularly in the event loop."""
        if time.monotonic() >= self._alive_at + _ALIVE_INTERVAL:
            self._alive_at = time.monotonic()
            self.send(*ALIVE)

    def receive(self) -> list[Any]:
        """The messages that have arrived, in order, each a list of strings."""
        while not self.ended:
            try:
                data = self._connection.recv(_READ)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self.ended = not data
            self._unread += data
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Close this end, which the other process notices."""
        self._connection.close()
