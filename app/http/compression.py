"""Compression of responses."""

import gzip
import zlib

from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipResponder, IdentityResponder
from starlette.types import ASGIApp, Receive, Scope, Send

LEAST_COMPRESSED = 2_000
"""Bytes. The result of one image is smaller, so that compression takes no time from the requests of most clients."""

_LEVEL = 5
_FAST = 1


def accepted(header: str) -> str | None:
    """The compression for a response: "gzip", "deflate" or None.

    Args:
        header: Accept-Encoding; empty without this header.
    """
    accepts = set()
    for offer in header.lower().split(","):
        name, *parameters = (part.strip() for part in offer.split(";"))
        if "q=" not in {parameter.rstrip("0.") for parameter in parameters}:  # a quality of zero refuses it
            accepts.add(name)
    return next((name for name in ("gzip", "deflate") if name in accepts), None)


def deflate(body: bytes, encoding: str) -> bytes:
    """Compress a response body with "gzip" or "deflate", quickly rather than well."""
    return gzip.compress(body, _FAST, mtime=0) if encoding == "gzip" else zlib.compress(body, _FAST)


def compressed(app: ASGIApp) -> ASGIApp:
    """Compress the responses of an application that have `LEAST_COMPRESSED` bytes, if the client accepts gzip.

    Starlette's GZipMiddleware compresses for any Accept-Encoding that contains "gzip", such as "gzip;q=0".
    """

    async def respond(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        gzip = accepted(Headers(scope=scope).get("accept-encoding", "")) == "gzip"
        responder = GZipResponder(app, LEAST_COMPRESSED, _LEVEL) if gzip else IdentityResponder(app, LEAST_COMPRESSED)
        await responder(scope, receive, send)

    return respond
