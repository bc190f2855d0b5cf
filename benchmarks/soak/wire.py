"""A minimal HTTP/1.1 client on asyncio streams. It shares the cores with the service, and httpx needs far more CPU."""

import asyncio
import contextlib
import time
from dataclasses import dataclass

# Much less than the service's keep-alive timeout, so that it does not close a connection that is about to be reused.
_MAX_IDLE = 1.0


class NoResponse(Exception):
    """There was no complete response. The message says why."""


@dataclass(frozen=True, slots=True)
class Response:
    """A response. Header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class Connection:
    """A connection to the service."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle_since: float = 0.0

    async def read_response(self) -> Response:
        """Read one response.

        Raises:
            NoResponse: the connection is closed or reset first, or the data is not HTTP.
        """
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head[:-4].decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = await self.reader.readexactly(int(headers["content-length"]))
            return Response(int(first.split(" ", 2)[1]), headers, body)
        except asyncio.IncompleteReadError as error:
            raise NoResponse("incomplete response" if error.partial else "no response") from error
        except (KeyError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise NoResponse("not HTTP") from error
        except OSError as error:
            raise NoResponse(type(error).__name__) from error

    def close(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.close()

    def abort(self) -> None:
        """Reset the connection, like a proxy whose mobile client has lost its network."""
        with contextlib.suppress(OSError, RuntimeError):
            self.writer.transport.abort()


class Pool:
    """Persistent connections to a service on this machine.

    Args:
        port: port of the service.
        timeout: seconds to wait for a response.
    """

    def __init__(self, port: int, timeout: float) -> None:
        self.port = port
        self.timeout = timeout
        self._idle: list[Connection] = []

    async def connect(self) -> Connection:
        """Open a connection.

        Raises:
            NoResponse: it is not accepted.
        """
        try:
            return Connection(*await asyncio.open_connection("127.0.0.1", self.port))
        except OSError as error:
            raise NoResponse(f"cannot connect: {type(error).__name__}") from error

    async def send(self, request: bytes, *, keep: bool = True) -> Response:
        """Send a request and read the response.

        Args:
            request: head and body.
            keep: whether the connection can be reused.

        Raises:
            NoResponse: there is no response within the timeout.
        """
        connection: Connection | None = None
        done = False
        try:
            async with asyncio.timeout(self.timeout):
                connection = self._reuse() or await self.connect()
                connection.writer.write(request)
                response = await connection.read_response()
                done = True
        except TimeoutError as error:
            raise NoResponse("timeout") from error
        finally:
            if connection and not done:
                connection.close()
        if keep and response.headers.get("connection", "").lower() != "close":
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        """Close all idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _reuse(self) -> Connection | None:
        """The connection that was used last, so that the others become idle for too long and are closed."""
        while self._idle:
            connection = self._idle.pop()
            if time.monotonic() - connection.idle_since < _MAX_IDLE and not connection.reader.at_eof():
                return connection
            connection.close()
        return None
