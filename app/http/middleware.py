"""Around every request: an id, the body limit, timings, the access log, and an answer when all else fails."""

import logging
import re
import secrets
import time
from collections.abc import Callable
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.problems import BodyTooLarge, problem_response, slug_of
from app.serving.errors import TooManyUploads
from app.telemetry.metrics import Telemetry

access = logging.getLogger("tenfold.access")
logger = logging.getLogger("tenfold")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class ClientGone(Exception):
    """The caller hung up before its answer: nobody is there to be told."""


class RequestContext:
    """Give each request an id and a start time, each response X-Request-ID and Server-Timing; count it and log a line.

    Routes find `request_id`, `arrived` (time.monotonic) and `timings` (name -> milliseconds, theirs to fill) in
    `request.state`, and tell there, as `rejected`, why they refuse a request.

    Args:
        app: what is wrapped.
        telemetry: is told of each request.
        closing: whether connections should be given up after their answer, because the service is draining.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, closing: Callable[[], bool]) -> None:
        self.app = app
        self.telemetry = telemetry
        self.closing = closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        arrived = state.setdefault("arrived", time.monotonic())  # uvicorn's protocol, if it is ours, knows better
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _SANE_ID.fullmatch(given) else secrets.token_hex(16)
        timings: dict[str, float] = {}
        state.update(request_id=request_id, timings=timings)
        status = 0

        async def send_with_context(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                timings["total"] = (time.monotonic() - arrived) * 1000
                stages = ", ".join([f"{name};dur={value:.1f}" for name, value in timings.items()])
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"server-timing", stages.encode()),
                ]
                if self.closing():
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        try:
            await self.app(scope, receive, send_with_context)
        except (ClientGone, ClientDisconnect):
            status, state["rejected"] = 499, "client-gone"  # nginx's number for it; never sent
        except Exception as error:
            logger.exception("request %s failed", request_id)
            state["rejected"] = slug_of(error)
            if status:
                raise  # half an answer is out: the server must cut the connection
            await problem_response(error, request_id)(scope, receive, send_with_context)
        finally:
            seconds = time.monotonic() - arrived
            rejected = state.get("rejected")
            route = getattr(scope.get("route"), "path", "other")
            self.telemetry.request(route=route, status=status, seconds=seconds, rejected=rejected)
            if access.isEnabledFor(logging.INFO):
                path = quote(scope["path"])  # a line break in it would forge a line
                fields = {
                    "request_id": request_id,
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "milliseconds": round(seconds * 1000, 1),
                    "stages": {name: round(value, 1) for name, value in timings.items() if name != "total"},
                }
                if rejected:
                    fields["rejected"] = rejected
                access.info(
                    "%s %s %d %.1fms id=%s",
                    *(scope["method"], path, status, seconds * 1000, request_id),
                    extra={"fields": fields},
                )


class BodyLimit:
    """Refuse a body over the limit as soon as it is known to be one, by its Content-Length or by counting.

    Args:
        app: what is wrapped.
        max_bytes: the limit.
        max_held_bytes: the limit for all bodies together whose requests are under way.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_held_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_held_bytes = max_held_bytes
        self.held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"")
        received = int(announced) if announced.isdigit() and int(announced) > self.max_bytes else 0
        held = 0

        async def receive_within_limit() -> Message:
            nonlocal received, held
            if received <= self.max_bytes:
                message = await receive()
                size = len(message.get("body", b""))
                received += size
                held += size
                self.held_bytes += size
            if self.held_bytes > self.max_held_bytes:
                raise TooManyUploads("the uploads under way fill the memory set aside for them: send this one again")
            if received > self.max_bytes:
                raise BodyTooLarge(
                    f"the request has more than {self.max_bytes:,} bytes: send fewer or smaller pictures"
                )
            return message

        try:
            await self.app(scope, receive_within_limit, send)
        finally:
            self.held_bytes -= held
