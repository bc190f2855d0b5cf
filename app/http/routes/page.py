"""The page at `/` and its files, from app/static."""

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request
from starlette.responses import Response

import app
from app.http.files import Files

router = APIRouter(include_in_schema=False)

# Nothing inline and nothing from other hosts. blob: and data: are for the visitor's own images.
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS: Final = {
    # Stored, but checked each time, so that files of two versions are never mixed.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
}

FOLDER: Final = Path(app.__file__).parent / "static"
_files = Files(FOLDER)
# The routes are plain functions, which FastAPI runs in threads, because the first request compresses a file.


def page(request: Request) -> Response:
    """The page."""
    return _file("index.html", request)


def static(request: Request) -> Response:
    """One of the page's files."""
    return _file(request.path_params["name"], request)


def _file(name: str, request: Request) -> Response:
    response = _files.response(name, request)
    response.headers.update(HEADERS)
    return response


for _path, _route in (("/", page), ("/static/{name}", static)):
    router.add_api_route(_path, _route)
