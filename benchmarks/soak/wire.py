"""HTTP/1.1 as the clients need it, on asyncio's streams: a fraction of what httpx costs, for it shares the cores."""

import asyncio
import contextlib
import time
from dataclasses import dataclass

# Well under the seconds after which the service hangs up on an idle connection, which would be nobody's fault.
_KEEP_IDLE = 1.0


class Lost(Exception):
    """There was no answer, or none that is one; the message says how it ended."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; the names of its headers are in small letters."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Connection:
    """A connection to the service."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle_since: float = 0.0

    async def reply(self) -> Reply:
        """Read one answer.

        Raises:
            Lost: it is reset, ends early or makes no sense.
        """
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head[:-4].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
            return Reply(int(first.split(" ", 2)[1]), headers, body)
        except asyncio.IncompleteReadError as error:
            raise Lost("half an answer" if error.partial else "no answer") from error
        except (KeyError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise Lost("not HTTP") from error
        except OSError as error:
            raise Lost(type(error).__name__) from error

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.close()

    def abort(self) -> None:
        """Hang up with a reset, as a phone that has lost its network looks to a proxy."""
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.transport.abort()


class Pool:
    """Kept-alive connections to a service on this machine.

    Args:
        port: where it listens.
        timeout: seconds that a well-behaved client waits for an answer.
    """

    def __init__(self, port: int, timeout: float) -> None:
        self.port = port
        self.timeout = timeout
        self._idle: list[Connection] = []

    async def connect(self) -> Connection:
        """A fresh connection.

        Raises:
            Lost: nobody accepts it.
        """
        try:
            return Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        except OSError as error:
            raise Lost(f"cannot connect: {type(error).__name__}") from error

    async def exchange(self, request: bytes, *, keep: bool = True) -> Reply:
        """Send a request and read its answer.

        Args:
            request: head and body.
            keep: whether the connection may serve another request.

        Raises:
            Lost: there is no answer, or not in time.
        """
        connection: Connection | None = None
        done = False
        try:
            async with asyncio.timeout(self.timeout):
                connection = self._taken() or await self.connect()
                connection.writer.write(request)
                reply = await connection.reply()
                done = True
        except TimeoutError as error:
            raise Lost("no answer in time") from error
        finally:
            if connection and not done:
                connection.close()
        if keep and reply.headers.get("connection", "").lower() != "close":
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def close(self) -> None:
        """Hang up on all."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _taken(self) -> Connection | None:
        """The connection that was used last: the others grow old and are closed."""
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.idle_since < _KEEP_IDLE and not connection.reader.at_eof():
                return connection
            connection.close()
        return None
