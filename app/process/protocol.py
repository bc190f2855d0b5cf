"""HTTP/1.1 by uvicorn and httptools, with limits for requests that are incomplete and responses that are not read."""

import asyncio
import logging
import math
import secrets
import sys
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.engine.errors import TooManyUploads
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
# Bytes of a head, and header fields. Servers and proxies have limits of 8 to 64 KiB and of 100 fields.
_MAX_HEAD, _MAX_FIELDS = 64 << 10, 100
# The framing of a body in chunks may have as many bytes as a head, and one for so many bytes of the body.
_BYTES_PER_FRAMING = 16
# Bytes outside of bodies that are parsed at once. So only the requests in one piece are ever in memory.
_PIECE = 256
# Digits of a Content-Length.
_MAX_DIGITS = 18
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
# Connections, if neither the setting nor the limit of open files is lower.
_MAX_CONNECTIONS = 4000
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


def http_protocol(
    timeout: float,
    telemetry: Telemetry | None = None,
    *,
    upload_timeout: float = 0.0,
    max_connections: int = 0,
    hold_bytes: Callable[[int], None] = lambda _: None,
) -> type[HttpToolsProtocol]:
    """A protocol with limits that uvicorn does not have.

    - A connection is closed if its request is incomplete after `timeout` seconds and a short grace, or after
      `upload_timeout` while the application reads the body. uvicorn waits for a request's head, and for the rest of a
      body that the application does not read, without limit.
    - A connection is closed if the client has read nothing of a response for `timeout` seconds.
    - A head of more than 64 KiB or 100 fields gets status 431. So do other bytes that are no part of a body, such as
      trailers and the sizes of many small chunks.
    - The requests of a connection are parsed one after the other, except for very short ones, and no more is received
      while complete requests wait. uvicorn parses all that have arrived.
    - A connection beyond `max_connections` gets status 503, is counted and logged. So does one that takes one of the
      last file descriptors. Without any descriptor left, libuv accepts connections and closes them, and reports
      nothing.

    A client that has sent complete requests may shut down its sending half. uvicorn would close the connection; this
    protocol sends the responses first. A client that has closed the connection looks the same until it receives
    something. So the first bytes of the response are sent early, one by one, and a client that is gone resets the
    connection.
    At shutdown uvicorn closes connections whose first request has not arrived; this protocol waits for that request.
    If a response closes the connection before the body has arrived, this protocol reads and discards the rest. To close
    a socket with unread data resets the connection, and the client loses the response.
    A request to upgrade to another protocol is processed as one without it, with its body, after RFC 9110, 7.8. Clients
    that prefer HTTP/2 send such requests.
    An invalid or incomplete request affects none of the requests that came before it on the same connection.
    It stores when the request's first byte arrived (time.monotonic) as `arrived` in the scope's state, and whether all
    of it has arrived as `complete`.

    Args:
        timeout: in seconds.
        telemetry: counts the connections that are refused.
        upload_timeout: in seconds, if it is longer than `timeout`.
        max_connections: 0 selects the limit of open files, less a reserve, but at most 4000.
        hold_bytes: called with the number of bytes of heads and waiting requests that are held in memory in addition;
            negative when they are released. It raises TooManyUploads if there is no room.
    """
    most_descriptors = math.inf
    if sys.platform != "win32" and (limit := resource.getrlimit(resource.RLIMIT_NOFILE)[0]) != resource.RLIM_INFINITY:
        most_descriptors = limit
    spare = min(_SPARE_DESCRIPTORS, most_descriptors // 8)
    most_connections = max_connections or _MAX_CONNECTIONS
    logged_at = -math.inf

    def count_refused(connections: int) -> None:
        nonlocal logged_at
        if telemetry:
            telemetry.connection_refused()
        if time.monotonic() >= logged_at + _LOG_INTERVAL:
            logged_at = time.monotonic()
            if connections > most_connections:
                logger.error(
                    "connections are refused, because %d are open: raise TENFOLD_MAX_CONNECTIONS", most_connections
                )
                return
            logger.error(
                "connections are refused, because this process may open %d files and connections at most: "
                "raise the limit (ulimit -n, or LimitNOFILE= of systemd)",
                most_descriptors,
            )

    class Protocol(HttpToolsProtocol):
        _timeout: asyncio.TimerHandle | None = None
        _probe: asyncio.TimerHandle | None = None
        _write_timeout: asyncio.TimerHandle | None = None
        _bytes_outside_bodies = 0.0
        _body_left = 0
        _unparsed = b""
        _held = 0
        _discards = False
        _refused = False
        _refusal: Callable[[], None] | None = None
        _repeats_head = False
        _half_closed = False
        _extended = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._set_timeout(timeout + _GRACE)
            connection = transport.get_extra_info("socket")
            left = most_descriptors - connection.fileno() if connection else math.inf  # a new one is the smallest
            left = min(left, most_connections - len(self.connections) + 2 * spare + 1)
            if left <= 2 * spare:
                count_refused(len(self.connections))
                self._refuse_for_now("the service has as many connections as it may have")
            if left <= spare:
                transport.close()  # at once, although the client may lose the response

        def eof_received(self) -> bool:  # type: ignore[override]
            """Keep the connection until the responses to complete requests have been sent."""
            if not self._waits:
                return False
            self._half_closed = True
            self._end_after_last()
            self._probe = self.loop.call_later(_PROBE_INTERVAL, self._probe_client)
            return True

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                self._unparsed += data
                self._parse()

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
            length = next((value for name, value in self.headers if name == b"content-length"), b"0")
            if len(length) > _MAX_DIGITS:
                raise ValueError("the Content-Length has too many digits")
            self._body_left = int(length)
            super().on_headers_complete()
            has_body = self.scope["method"] != "HEAD"
            self._response = _ResponseTransport(self.transport, self._close, has_body=has_body)
            self.cycle.transport = self._response  # type: ignore[assignment]

        def on_body(self, body: bytes) -> None:
            self._body_left -= len(body)
            self._bytes_outside_bodies -= len(body) + len(body) / _BYTES_PER_FRAMING
            super().on_body(body)

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade():
                return  # `_feed` continues with the body
            super().on_message_complete()
            self.scope["state"]["complete"] = True
            self._bytes_outside_bodies = self._body_left = 0
            self._cancel_timeout()
            if self._discards:
                self.transport.close()

        def on_response_complete(self) -> None:
            if self._discards:
                self.flow.resume_reading()
            else:
                super().on_response_complete()
                if not self.transport.is_closing():
                    self._continue()
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
            self._refused, self._unparsed, self._bytes_outside_bodies = True, b"", 0
            self._hold()
            super().connection_lost(exc)

        @property
        def _waits(self) -> bool:
            """Whether a complete request waits for its response."""
            return bool(self.pipeline) or bool(
                self.cycle and not self.cycle.more_body and not self.cycle.response_complete
            )

        def _parse(self) -> None:
            """Parse what has arrived, up to the end of a complete request whose response is not complete."""
            rest = memoryview(self._unparsed)
            try:
                while rest and not self._refused and not self._waits:
                    piece = rest[: max(_PIECE, self._body_left)]
                    self._bytes_outside_bodies += len(piece)
                    rest = rest[self._feed(piece) :]
                    if self._bytes_outside_bodies > _MAX_HEAD or len(self.headers or ()) > _MAX_FIELDS:
                        detail = (
                            f"the head has more than {_MAX_HEAD} bytes or {_MAX_FIELDS} fields, or the body many small "
                            "chunks: send fewer or shorter header fields, or larger chunks"
                        )
                        self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
            except httptools.HttpParserError:
                self._refuse(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP/1.1 request: send one to an http:// URL")
            self._unparsed = b"" if self._refused else bytes(rest)
            if self._unparsed:
                self.flow.pause_reading()
            self._hold()

        def _feed(self, data: memoryview) -> int:
            """Parse data, at most up to the end of a head that requests an upgrade.

            httptools takes what follows such a head for the other protocol. A new parser takes it for the body and
            further requests. It gets a head without the upgrade first, with the same length of the body.

            Returns:
                Number of bytes that were parsed.

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
                return int(upgrade.args[0])
            return len(data)

        def _continue(self) -> None:
            """After a response: parse the next request, or end the connection if none can follow."""
            self._parse()
            if self._refusal:
                if not self._waits:
                    self._refusal()
            elif self._half_closed:
                self._end_after_last()
            elif self._extended:  # nobody reads the rest of this body
                self._cancel_timeout()
                self._set_timeout(timeout + _GRACE)

        def _end_after_last(self) -> None:
            """End the connection after the last response, because the client sends no more."""
            if not self._waits:
                self.transport.close()
            elif not self.pipeline and not self._unparsed and not self._refusal:
                self.cycle.keep_alive = False

        def _hold(self) -> None:
            """Count the bytes of an incomplete head and of waiting requests."""
            now = len(self._unparsed) + max(0, int(self._bytes_outside_bodies))
            if now != self._held:
                before, self._held = self._held, now
                try:
                    hold_bytes(now - before)
                except TooManyUploads:
                    self._refuse_for_now("the requests in progress fill the memory of the service")

        def _probe_client(self) -> None:
            """Send a byte of the response, to which a client that has closed the connection responds with a reset."""
            if self.pipeline or self._response.send_early():  # the response to an earlier request comes first
                self._probe = self.loop.call_later(_PROBE_INTERVAL, self._probe_client)

        def _refuse_for_now(self, reason: str) -> None:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}: try again later", "retry-after: 1\r\n")

        def _refuse(self, status: HTTPStatus, detail: str, fields: str = "") -> None:
            """Read no more, and respond so after the responses to the requests before."""
            self._refused, self._unparsed, self._bytes_outside_bodies = True, b"", 0
            self._hold()
            self._refusal = partial(self._send_refusal, status, detail, fields)
            if not self._waits:
                self._refusal()

        def _send_refusal(self, status: HTTPStatus, detail: str, fields: str) -> None:
            """Respond to a request that has no valid head, or to none, and close the connection."""
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
            self.flow.resume_reading()

        def _close(self) -> None:
            """Close the connection, or only its sending half while more of the client's data may arrive."""
            complete = self._timeout is None and not self._unparsed
            if complete or self.transport.is_closing() or not self.transport.can_write_eof():
                self.transport.close()
                return
            if self._unparsed:  # requests that get no response
                self._refused, self._unparsed = True, b""
                self._hold()
            self._discards = True
            self.transport.write_eof()
            self._cancel_timeout()
            self._set_timeout(_LINGER)

        def _set_timeout(self, seconds: float) -> None:
            self._timeout = self.loop.call_later(seconds + _CLOCK, self._end_incomplete)

        def _end_incomplete(self) -> None:
            """Close a connection with an incomplete request, unless the application may be reading its body."""
            reads = self.cycle and self.cycle.more_body and not self.cycle.response_complete
            if reads and not self._extended and upload_timeout > timeout:
                self._set_timeout(upload_timeout - timeout)
                self._extended = True
            else:
                self.transport.close()

        def _cancel_timeout(self) -> None:
            self._extended = False
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
