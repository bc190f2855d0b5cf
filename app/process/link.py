"""Messages between the supervisor and a worker, one line of JSON each, over a pair of connected sockets."""

import logging
import socket

from app.serving.swap import Message, decode, encode

logger = logging.getLogger("tenfold")

_READ = 65_536


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

    def send(self, message: Message) -> None:
        """Send a message. It is lost if the other process has ended, or has read nothing for hundreds of messages."""
        line = encode(message)
        try:
            sent = self._connection.send(line)
        except BlockingIOError:
            sent = 0
        except OSError:  # it has ended
            return
        if sent < len(line):  # half a line cannot be taken back
            logger.error("another process of the service does not read its messages")
            self.close()

    def receive(self) -> list[Message]:
        """The messages that have arrived, in order."""
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
        return [decode(line) for line in lines]

    def close(self) -> None:
        """Close this end, which the other process notices."""
        self._connection.close()
