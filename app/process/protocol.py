"""HTTP/1.1 by uvicorn and httptools, with a timeout for incomplete requests."""

import asyncio
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Seconds beyond the request's own timeout, so that the response that reports it is sent first.
_GRACE = 1.0
# Seconds for a request to arrive on a connection that was accepted just before the server stopped listening.
_FIRST_REQUEST_TIMEOUT = 2.0


def http_protocol(timeout: float) -> type[HttpToolsProtocol]:
    """A protocol that closes a connection whose request is incomplete after `timeout` seconds and a short grace.

    uvicorn waits for a request's head, and for the rest of a body that the application does not read, without limit.
    At shutdown it closes connections whose first request has not arrived; this protocol waits for that request.
    It stores when the request's first byte arrived (time.monotonic) as `arrived` in the scope's state.
    """

    class Protocol(HttpToolsProtocol):
        _timeout: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._set_timeout(timeout + _GRACE)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["state"]["arrived"] = time.monotonic()
            if self._timeout is None:
                self._set_timeout(timeout + _GRACE)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._cancel_timeout()

        def shutdown(self) -> None:
            if self._timeout is None or (self.cycle and not self.cycle.response_complete):
                super().shutdown()
            elif self._timeout.when() > self.loop.time() + _FIRST_REQUEST_TIMEOUT:
                self._cancel_timeout()
                self._set_timeout(_FIRST_REQUEST_TIMEOUT)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_timeout()
            super().connection_lost(exc)

        def _set_timeout(self, seconds: float) -> None:
            self._timeout = self.loop.call_later(seconds, self.transport.close)

        def _cancel_timeout(self) -> None:
            if self._timeout:
                self._timeout.cancel()
                self._timeout = None

    return Protocol
