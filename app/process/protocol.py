"""HTTP/1.1 by uvicorn and httptools, with limits for requests that are incomplete and responses that are not read."""

import asyncio
import logging
import math
import secrets
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.http.problems import MEDIA_TYPE
from app.http.schemas import Problem
from app.telemetry.metrics import Telemetry

if sys.platform != "win32":
    import resource

logger = logging.getLogger("tenfold")

# Seconds beyond the request's own timeout, so that the response that reports it is sent first.
_GRACE = 1.0
# Seconds for a request to arrive on a connection that was accepted just before the server stopped listening.
_FIRST_REQUEST_TIMEOUT = 2.0
# Seconds for the rest of a request whose response closes the connection.
_LINGER = 5.0
# uvloop's clock counts whole milliseconds, so a timer may be early by one.
_CLOCK = 0.001
# Bytes of a head. Servers and proxies have limits of 8 to 64 KiB for it.
_MAX_HEAD = 64 << 10
# Start of the response to `Expect: 100-continue`, which comes before the response itself.
_INTERIM_RESPONSE = b"HTTP/1.1 100 "
# Every response begins with it.
_VERSION = b"HTTP/1.1 "
# Seconds after which, and between which, a byte of it is sent to a client that sends no more. Most responses are
# finished by then.
_PROBE_INTERVAL = 0.25
# File descriptors that connections leave to the files of the service, and as many for the responses that refuse
# connections. If the limit is low, each is an eighth of it.
_SPARE_DESCRIPTORS = 16
# Seconds between two log lines that report refused connections.
_LOG_INTERVAL = 10.0


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
        self._has_body = has_body
        self._begun = False
        self._head = b""
        self._sent_early = 0

    def write(self, data: bytes) -> None:
        """Send data, after the head if that has not been sent; keep the head itself."""
        if self._begun:
            self._transport.write(self._head + data if self._head else data)
            self._head = b""
        elif data.startswith(_INTERIM_RESPONSE):
            if not self._sent_early:
                self._transport.write(data)
        else:
            self._begun = True
            head = data[self._sent_early :]
            if self._has_body:
                self._head = head
            else:
                self._transport.write(head)

    def send_early(self) -> bool:
        """Send the next byte of the HTTP version before the rest of the response is known.

        Returns:
            Whether there was such a byte.
        """
        if self._begun or self._sent_early == len(_VERSION):
            return False
        self._transport.write(_VERSION[self._sent_early : self._sent_early + 1])
        self._sent_early += 1
        return True

    def close(self) -> None:
        """Close the connection after all data has been sent."""
        if self._head:
            self.write(b"")
        self._close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def http_protocol(timeout: float, telemetry: Telemetry | None = None) -> type[HttpToolsProtocol]:
    """A protocol with limits that uvicorn does not have.

    - A connection is closed if its request is incomplete after `timeout` seconds and a short grace. uvicorn waits for a
      request's head, and for the rest of a body that the application does not read, without limit.
    - A connection is closed if the client has read nothing of a response for `timeout` seconds.
    - A head of more than 64 KiB gets status 431. So do other bytes that are no part of a body, such as trailers. The
      limit is not exact: the last bytes that were received together with others may exceed it.
    - A connection that takes one of the last file descriptors gets status 503, is counted and logged. Without any
      descriptor left, libuv accepts connections and closes them, and reports nothing.

    A client that has sent complete requests may shut down its sending half. uvicorn would close the connection; this
    protocol sends the responses first. A client that has closed the connection looks the same until it receives
    something. So the first bytes of the response are sent early, one by one, and a client that is gone resets the
    connection.
    At shutdown uvicorn closes connections whose first request has not arrived; this protocol waits for that request.
    If a response closes the connection before the body has arrived, this protocol reads and discards the rest. To close
    a socket with unread data resets the connection, and the client loses the response.
    A request to upgrade to another protocol is processed as one without it, with its body, after RFC 9110, 7.8. Clients
    that prefer HTTP/2 send such requests.
    It stores when the request's first byte arrived (time.monotonic) as `arrived` in the scope's state.

    Args:
        timeout: in seconds.
        telemetry: counts the connections that are refused.
    """
    most_descriptors = math.inf
    if sys.platform != "win32" and (limit := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) != resource.RLIM_INFINITY:
        most_descriptors = limit
    spare = min(_SPARE_DESCRIPTORS, most_descriptors // 8)
    logged_at = -math.inf

    def count_refused() -> None:
        nonlocal logged_at
        if telemetry:
            telemetry.connection_refused()
        if time.monotonic() >= logged_at + _LOG_INTERVAL:
            logged_at = time.monotonic()
            logger.error(
                "connections are refused, because this process may open %d files and connections at most: "
                "raise the limit (ulimit -n, or LimitNOFILE= of systemd)",
                most_descriptors,
            )

    class Protocol(HttpToolsProtocol):
        _timeout: asyncio.TimerHandle | None = None
        _probe: asyncio.TimerHandle | None = None
        _write_timeout: asyncio.TimerHandle | None = None
        _bytes_outside_bodies = 0
        _discards = False
        _refused = False
        _repeats_head = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._set_timeout(timeout + _GRACE)
            connection = transport.get_extra_info("socket")
            left = most_descriptors - connection.fileno() if connection else math.inf  # a new one is the smallest
            if left <= 2 * spare:
                count_refused()
                detail = "the service has as many connections as it may have: try again later"
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, detail, "retry-after: 1\r\n")
            if left <= spare:
                transport.close()  # at once, although the client may lose the response

        def eof_received(self) -> bool:  # type: ignore[override]
            """Keep the connection until the responses to complete requests have been sent."""
            if self._timeout or not self.cycle or self.cycle.response_complete:
                return False
            self.cycle.keep_alive = False
            self._probe = self.loop.call_later(_PROBE_INTERVAL, self._probe_client)
            return True

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            self._bytes_outside_bodies += len(data)
            try:
                while data:
                    data = self._parse(data)
            except httptools.HttpParserError:
                self._refuse(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP/1.1 request: send one to an http:// URL")
                return
            if self._bytes_outside_bodies > _MAX_HEAD:
                detail = f"the head has more than {_MAX_HEAD} bytes: send fewer or shorter header fields"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

        def on_message_begin(self) -> None:
            if self._repeats_head:
                return
            self._unset_keepalive_if_required()
            super().on_message_begin()
            self.scope["state"]["arrived"] = time.monotonic()
            if self._timeout is None:
                self._set_timeout(timeout + _GRACE)

        def on_url(self, url: bytes) -> None:
            if not self._repeats_head:
                super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._repeats_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._bytes_outside_bodies = 0
            if self._repeats_head:
                return
            super().on_headers_complete()
            has_body = self.scope["method"] != "HEAD"
            self._response = _ResponseTransport(self.transport, self._close, has_body=has_body)
            self.cycle.transport = self._response  # type: ignore[assignment]

        def on_body(self, body: bytes) -> None:
            self._bytes_outside_bodies = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade():
                return  # `_parse` continues with the body
            super().on_message_complete()
            self._cancel_timeout()
            if self._discards:
                self.transport.close()

        def on_response_complete(self) -> None:
            if self._discards:
                self.flow.resume_reading()
            else:
                super().on_response_complete()
            if self._write_timeout is None and (unsent := self.transport.get_write_buffer_size()):
                self._set_write_timeout(unsent)

        def shutdown(self) -> None:
            if self._timeout is None or (self.cycle and not self.cycle.response_complete):
                super().shutdown()
            elif self._timeout.when() > self.loop.time() + _FIRST_REQUEST_TIMEOUT:
                self._cancel_timeout()
                self._set_timeout(_FIRST_REQUEST_TIMEOUT)

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_timeout()
            for timer in (self._write_timeout, self._probe):
                if timer:
                    timer.cancel()
            super().connection_lost(exc)

        def _parse(self, data: bytes) -> bytes:
            """Parse data up to the end of a head that requests an upgrade, and return the rest.

            httptools takes what follows such a head for the other protocol. A new parser takes it for the body and
            further requests. It gets a head without the upgrade first, with the same length of the body.

            Raises:
                httptools.HttpParserError: the data is not valid.
            """
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                framing = (b"content-length", b"transfer-encoding")
                fields = b"".join(b"%s: %s\r\n" % field for field in self.headers if field[0] in framing)
                self.parser = httptools.HttpRequestParser(self)
                self._repeats_head = True
                self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % fields)
                self._repeats_head = False
                return data[upgrade.args[0] :]
            return b""

        def _probe_client(self) -> None:
            """Send a byte of the response, to which a client that has closed the connection responds with a reset."""
            if self.pipeline or self._response.send_early():  # the response to an earlier request comes first
                self._probe = self.loop.call_later(_PROBE_INTERVAL, self._probe_client)

        def _refuse(self, status: HTTPStatus, detail: str, fields: str = "") -> None:
            """Respond to a request that has no valid head, or to none, and close the connection."""
            self._refused = True
            if self._discards or (self.cycle and not self.cycle.response_complete):
                self.transport.close()  # another response was sent or begun
                return
            request_id = secrets.token_hex(16)
            problem = Problem(
                type="about:blank", title=status.phrase, status=status, detail=detail, instance=request_id
            )
            body = problem.model_dump_json().encode()
            head = (
                f"content-type: {MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: {request_id}\r\n{fields}connection: close\r\n\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head.encode() + body)
            self._close()

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

        def _set_write_timeout(self, unsent: int) -> None:
            self._write_timeout = self.loop.call_later(timeout + _CLOCK, self._check_writing, unsent, self.cycle)

        def _check_writing(self, unsent_before: int, cycle: object) -> None:
            self._write_timeout = None
            unsent = self.transport.get_write_buffer_size()
            # A response to a later request may have been added.
            if unsent >= unsent_before and self.cycle is cycle:
                self.transport.abort()
            elif unsent:
                self._set_write_timeout(unsent)

    return Protocol
