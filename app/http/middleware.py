"""Around every request: request ID, timings, metrics, access log, body limit, and a response when all else fails."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection
from http import HTTPStatus
from urllib.parse import quote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.engine.errors import NotReady
from app.http.inflate import inflated
from app.http.problems import BodyTooLarge, ClientDisconnected, Errors, InvalidParameter
from app.serving.admission import Limits
from app.telemetry.metrics import Telemetry

access = logging.getLogger("tenfold.access")
logger = logging.getLogger("tenfold")

_PORT = re.compile(r":\d*\Z")
_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# Digits of a Content-Length that are converted. int() refuses thousands.
_MAX_DIGITS = 18
# Parameters of a query. More take as much time as an image.
_MAX_PARAMETERS = 100

# nginx's status for a client that closed the connection. It is never sent.
_CLIENT_CLOSED = 499

# Routes that machines request all the time.
_PROBES = {"/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready"}


class RequestContext:
    """The outermost middleware: gives each request an ID and a start time, counts it and logs a line.

    HEAD is handled as GET. The server sends no body for it.

    Each response gets X-Request-ID, X-Content-Type-Options and Server-Timing. Routes find in `request.state`:
    `request_id`, `arrived` (time.monotonic() at the first byte) and `timings` (name -> milliseconds, for them to
    fill). They write there `model`, the name of the model that a request is for, and `rejected`, the reason for which
    they refuse it.

    Args:
        app: the application inside.
        telemetry: counts each request.
        closing: whether connections are closed after their response, because the service is draining.
        log_probes: whether successful requests for probes and metrics get a line too.
    """

    def __init__(
        self, app: ASGIApp, telemetry: Telemetry, closing: Callable[[], bool], *, log_probes: bool = False
    ) -> None:
        self.app = app
        self.telemetry = telemetry
        self.closing = closing
        self.log_probes = log_probes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        arrived = state.setdefault("arrived", time.monotonic())  # set earlier by our protocol for uvicorn
        given = _header(scope, b"x-request-id").decode("latin-1")
        request_id = given if _VALID_ID.fullmatch(given) else secrets.token_hex(16)
        timings: dict[str, float] = {}
        state.update(request_id=request_id, timings=timings)
        status = 0
        # The server reads the method of its own scope.
        inside = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope

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
            await self.app(inside, receive, send_with_context)
        except (ClientDisconnected, ClientDisconnect):
            status, state["rejected"] = _CLIENT_CLOSED, "client-gone"
        finally:
            seconds = time.monotonic() - arrived
            rejected, model = state.get("rejected"), state.get("model", "")
            route = getattr(inside.get("route"), "path", "other")
            self.telemetry.request(route=route, status=status, model=model, seconds=seconds, rejected=rejected)
            quiet = not self.log_probes and route in _PROBES and status == HTTPStatus.OK
            if not quiet and access.isEnabledFor(logging.INFO):
                _log(scope, status, seconds, timings, model, rejected)


def _log(
    scope: Scope, status: int, seconds: float, timings: dict[str, float], model: str, rejected: str | None
) -> None:
    request_id = scope["state"]["request_id"]
    path = quote(scope["path"])  # a line break in it would forge a line
    fields = {
        "request_id": request_id,
        "method": scope["method"],
        "path": path,
        "status": status,
        "milliseconds": round(seconds * 1000, 1),
        "stages": {name: round(value, 1) for name, value in timings.items() if name != "total"},
    }
    if model:
        fields["model"] = model
    if rejected:
        fields["rejected"] = rejected
    access.info(
        "%s %s %d %.1fms id=%s",
        *(scope["method"], path, status, seconds * 1000, request_id),
        extra={"fields": fields},
    )


class PathPrefix:
    """Removes a path prefix that a proxy keeps in the paths, so that everything inside works as at the root.

    A path without the prefix stays as it is: of a proxy that removes the prefix itself, or of a probe. Nothing inside
    needs the prefix, because redirects and the servers of the OpenAPI schema are relative.

    Args:
        app: the application inside.
        prefix: such as "/tenfold"; empty for none. The server's own prefix (`root_path` of ASGI) is removed too.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self.prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "")
        if scope["type"] == "http" and (root or self.prefix):
            path = _below(self.prefix, _below(root.rstrip("/"), scope["path"]))
            scope = {**scope, "path": path, "root_path": ""}
        await self.app(scope, receive, send)


def _below(prefix: str, path: str) -> str:
    """The path below a prefix; empty for the prefix itself, which is redirected to the page."""
    return path[len(prefix) :] if f"{path}/".startswith(f"{prefix}/") else path


def allowed_hosts(app: ASGIApp, hosts: Collection[str], errors: Errors) -> ASGIApp:
    """Refuse requests whose Host is not one of `hosts`, except for probes, which come by address.

    A host that begins with "*." stands for all names below the rest.
    """

    domains = tuple(host[1:] for host in hosts if host.startswith("*."))

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _PROBES:
            host = _PORT.sub("", _header(scope, b"host").decode("latin-1").lower())
            if host not in hosts and not host.endswith(domains):
                error = HTTPException(HTTPStatus.BAD_REQUEST, "This Host is not in TENFOLD_ALLOWED_HOSTS")
                await errors.response(scope, error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return respond


# Slashes at the end of a path, plain and encoded.
_SLASHES = re.compile(r"(?:/|%2[fF])+\Z")


def relative_redirects(app: ASGIApp) -> ASGIApp:
    """Make the Location of the router's redirects relative, because a proxy may change host, scheme and prefix.

    The router redirects only from a path with a slash at its end to that without, or the other way round.
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_relative(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.TEMPORARY_REDIRECT:
                # As the server received it, with a prefix; a server may lack it.
                path = scope.get("raw_path", b"").decode("latin-1") or quote(scope["path"])
                bare = _SLASHES.sub("", path)
                name = bare.rpartition("/")[2]
                query = scope["query_string"].decode("latin-1")
                up = "../" * path[len(bare) :].count("/") or "./"
                location = f"{up}{name}" if path != bare else f"./{name}/"
                MutableHeaders(scope=message)["Location"] = f"{location}?{query}" if query else location
            await send(message)

        await app(scope, receive, send_relative)

    return respond


class InternalErrors:
    """Answers an exception that no route handles with a 500, and a request that is cut off at the end with a 503.

    It is inside CORS, so pages of other origins can read these responses.

    Args:
        app: the application inside.
        errors: renders the response.
    """

    def __init__(self, app: ASGIApp, errors: Errors) -> None:
        self.app = app
        self.errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            if scope["query_string"].count(b"&") >= _MAX_PARAMETERS:
                raise InvalidParameter(f"the query has more than {_MAX_PARAMETERS} parameters: send fewer")
            if "\n" in scope["path"]:  # which a route would ignore at the end of its path
                raise HTTPException(HTTPStatus.NOT_FOUND)
            await self.app(scope, receive, send_and_note)
        except (InvalidParameter, HTTPException) as error:
            await self.errors.response(scope, error)(scope, receive, send)
        except (ClientDisconnected, ClientDisconnect):
            raise
        except asyncio.CancelledError:
            # Nothing else cancels the task of a request.
            interrupted = NotReady("the service shut down before this request was finished: send it again")
            response = self.errors.response(scope, interrupted)
            if started:
                raise
            if task := asyncio.current_task():
                task.uncancel()
            await response(scope, receive, send)
        except Exception as error:
            logger.exception("request %s failed", scope["state"]["request_id"])
            response = self.errors.response(scope, error)
            if started:
                raise  # half a response has been sent: the server must close the connection
            await response(scope, receive, send)


class BodyLimit:
    """Refuses a body over the limit as soon as it is known to be over it, by its Content-Length or by counting.

    A body with Content-Encoding is decompressed here, and counted before and after that.

    Its bytes count for the model in `request.state.model`, which a route sets before it reads the body.

    Args:
        app: the application inside.
        max_bytes: the limit for one body.
        limits: count the bytes of all bodies in memory.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, limits: Limits) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = _header(scope, b"content-length")
        encoding = _header(scope, b"content-encoding").decode("latin-1")
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self.limits.hold_bytes(scope["state"].get("model", ""), size)

        digits = announced.lstrip(b"0")
        large = digits.isdigit() and (len(digits) > _MAX_DIGITS or int(digits) > self.max_bytes)
        received = self.max_bytes + 1 if large else 0
        body = self._limited(receive, hold, received)
        if encoding:
            body = self._limited(inflated(body, encoding), hold, after=" after decompression")
        try:
            await self.app(scope, body, send)
        finally:
            self.limits.hold_bytes(scope["state"].get("model", ""), -held)

    def _limited(self, receive: Receive, hold: Callable[[int], None], received: int = 0, *, after: str = "") -> Receive:
        async def receive_within_limit() -> Message:
            nonlocal received
            if received <= self.max_bytes:
                message = await receive()
                size = len(message.get("body", b""))
                received += size
                hold(size)
            if received > self.max_bytes:
                raise BodyTooLarge(
                    f"the request has more than {self.max_bytes:,} bytes{after}: send fewer or smaller images"
                )
            return message

        return receive_within_limit


def _header(scope: Scope, name: bytes) -> bytes:
    """The value of a header, the last one if there are several; empty if there is none."""
    value = b""
    for key, given in scope["headers"]:
        if key == name:
            value = given
    return value
