"""HTTP/1.1 by uvicorn and httptools, with a timeout for incomplete requests."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Seconds beyond the request's own timeout, so that the response that reports it is sent first.
_GRACE = 1.0
# Seconds for a request to arrive on a connection that was accepted just before the server stopped listening.
_FIRST_REQUEST_TIMEOUT = 2.0
# Seconds for the rest of a request whose response closes the connection.
_LINGER = 5.0
# uvloop's clock counts whole milliseconds, so a timer may be early by one.
_CLOCK = 0.001
# Start of the response to `Expect: 100-continue`, which comes before the response itself.
_INTERIM_RESPONSE = b"HTTP/1.1 100 "


class _ResponseTransport:
    """The transport as one response uses it. It sends the head together with the first bytes of the body.

    uvicorn writes them separately, and uvloop makes a system call for each.

    Args:
        transport: of the connection.
        close: called instead of its own `close`.
        has_body: whether anything is written after the head.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], *, has_body: bool) -> None:
        self._transport = transport
        self._close = close
        self._awaits_head = has_body
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send data, after the head if that has not been sent; keep the head itself."""
        if not self._awaits_head:
            self._transport.write(self._head + data if self._head else data)
            self._head = b""
        elif data.startswith(_INTERIM_RESPONSE):
            self._transport.write(data)
        else:
            self._head, self._awaits_head = data, False

    def close(self) -> None:
        """Close the connection after all data has been sent."""
        if self._head:
            self.write(b"")
        self._close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def http_protocol(timeout: float) -> type[HttpToolsProtocol]:
    """A protocol that closes a connection whose request is incomplete after `timeout` seconds and a short grace.

    uvicorn waits for a request's head, and for the rest of a body that the application does not read, without limit.
    At shutdown it closes connections whose first request has not arrived; this protocol waits for that request.
    If a response closes the connection before the body has arrived, this protocol reads and discards the rest. To close
    a socket with unread data resets the connection, and the client loses the response.
    It stores when the request's first byte arrived (time.monotonic) as `arrived` in the scope's state.
    """

    class Protocol(HttpToolsProtocol):
        _timeout: asyncio.TimerHandle | None = None
        _discards = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._set_timeout(timeout + _GRACE)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["state"]["arrived"] = time.monotonic()
            if self._timeout is None:
                self._set_timeout(timeout + _GRACE)

        def on_headers_complete(self) -> None:
            super().on_headers_complete()
            has_body = self.scope["method"] != "HEAD"
            self.cycle.transport = _ResponseTransport(self.transport, self._close, has_body=has_body)  # type: ignore[assignment]

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._cancel_timeout()
            if self._discards:
                self.transport.close()

        def on_response_complete(self) -> None:
            if self._discards:
                self.flow.resume_reading()
            else:
                super().on_response_complete()

        def shutdown(self) -> None:
            if self._timeout is None or (self.cycle and not self.cycle.response_complete):
                super().shutdown()
            elif self._timeout.when() > self.loop.time() + _FIRST_REQUEST_TIMEOUT:
                self._cancel_timeout()
                self._set_timeout(_FIRST_REQUEST_TIMEOUT)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_timeout()
            super().connection_lost(exc)

        def _close(self) -> None:
            """Close the connection, or only its sending half while a request is incomplete."""
            if self._timeout is None or self.transport.is_closing() or not self.transport.can_write_eof():
                self.transport.close()
                return
            self._discards = True
            self.transport.write_eof()
            self._cancel_timeout()
            self._set_timeout(_LINGER)

        def _set_timeout(self, seconds: float) -> None:
            self._timeout = self.loop.call_later(seconds + _CLOCK, self.transport.close)

        def _cancel_timeout(self) -> None:
            if self._timeout:
                self._timeout.cancel()
                self._timeout = None

    return Protocol
