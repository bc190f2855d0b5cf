"""A minimal HTTP/1.1 client on asyncio. It shares the cores with the service, so it must need little CPU time."""

import asyncio
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


class Connection(asyncio.Protocol):
    """A connection to the service.

    Attributes:
        ended: whether the service has closed it or sent what is not HTTP.
        idle_since: end of the last response, by time.monotonic().
    """

    def __init__(self) -> None:
        self.ended = False
        self.idle_since = 0.0
        self._received = b""
        self._waiter: asyncio.Future[Response] | None = None
        self._failure: NoResponse | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._settle()

    def eof_received(self) -> None:
        self.ended = True
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        if exc:
            self._failure = NoResponse(type(exc).__name__)
        self._settle()

    def write(self, data: bytes) -> None:
        """Send data, a request or a part of one."""
        self._transport.write(data)

    async def read_response(self) -> Response:
        """Read one response.

        Raises:
            NoResponse: the connection is closed or reset first, or the data is not HTTP.
        """
        self._waiter = asyncio.get_running_loop().create_future()
        self._settle()
        return await self._waiter

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def abort(self) -> None:
        """Reset the connection, like a proxy whose mobile client has lost its network."""
        self._transport.abort()

    def _settle(self) -> None:
        """Give the response, or the reason why there is none, to the task that waits for it."""
        if self._waiter is None or self._waiter.done():
            return
        try:
            if response := self._take():
                self._waiter.set_result(response)
            elif self._failure:
                self._waiter.set_exception(self._failure)
            elif self.ended:
                self._waiter.set_exception(NoResponse("incomplete response" if self._received else "no response"))
        except (KeyError, ValueError, IndexError):
            self.ended = True
            self._waiter.set_exception(NoResponse("not HTTP"))

    def _take(self) -> Response | None:
        """Remove a complete response from the received data.

        Raises:
            KeyError, ValueError, IndexError: the data is not HTTP, or the response has no length.
        """
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status, length = int(first.split(" ", 2)[1]), int(headers["content-length"])
        if len(rest) < length:
            return None
        self._received = rest[length:]
        return Response(status, headers, rest[:length])


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
            _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", self.port)
        except OSError as error:
            raise NoResponse(f"cannot connect: {type(error).__name__}") from error
        return connection

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
                connection.write(request)
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
            if time.monotonic() - connection.idle_since < _MAX_IDLE and not connection.ended:
                return connection
            connection.close()
        return None
