"""Compression of responses with gzip."""

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp

LEAST_COMPRESSED = 2_000
"""Bytes. The result of one image is smaller, so that compression takes no time from the requests of most clients."""

_LEVEL = 5


def compressed(app: ASGIApp) -> ASGIApp:
    """Compress the responses of an application that have `LEAST_COMPRESSED` bytes, if the client accepts gzip."""
    return GZipMiddleware(app, minimum_size=LEAST_COMPRESSED, compresslevel=_LEVEL)
