"""HTTP/1.1 by uvicorn and httptools, with an end to the patience for slow senders."""

import asyncio
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Beyond the deadline, so that the answer which says why comes first.
_GRACE = 1.0
# Seconds for a request to come in on a connection that was made just before the service stopped listening.
_HEARING = 2.0


def protocol_with(timeout: float) -> type[HttpToolsProtocol]:
    """A protocol that hangs up on who has not sent a whole request within `timeout` seconds and a little.

    uvicorn itself waits for a request's head, and for the rest of a body that nobody reads, without end. At shutdown
    it hangs up on who has connected and not spoken yet, or not to the end; this hears them out. It also tells the
    application when the first byte of the request came: `arrived` (time.monotonic) in the scope's state.
    """

    class Protocol(HttpToolsProtocol):
        _hang_up: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._hang_up = self.loop.call_later(timeout + _GRACE, transport.close)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["state"]["arrived"] = time.monotonic()
            if self._hang_up is None:
                self._hang_up = self.loop.call_later(timeout + _GRACE, self.transport.close)

        def on_message_complete(self) -> None:
            super().on_message_complete()
            self._be_patient()

        def shutdown(self) -> None:
            if self._hang_up is None or (self.cycle and not self.cycle.response_complete):
                super().shutdown()
            elif self._hang_up.when() > self.loop.time() + _HEARING:
                self._be_patient()
                self._hang_up = self.loop.call_later(_HEARING, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._be_patient()
            super().connection_lost(exc)

        def _be_patient(self) -> None:
            if self._hang_up:
                self._hang_up.cancel()
                self._hang_up = None

    return Protocol
