"""The page at `/` and its files, out of app/static."""

import hashlib
from importlib import resources
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Header
from starlette.exceptions import HTTPException
from starlette.responses import Response

router = APIRouter(include_in_schema=False)

# Nothing inline and nothing from elsewhere; blob: and data: are for the visitor's own pictures.
POLICY = "; ".join(
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
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def _read() -> dict[str, _File]:
    files = {}
    for path in (resources.files("app") / "static").iterdir():
        media_type = _TYPES.get(path.name.rpartition(".")[2])
        if media_type:
            content = path.read_bytes()
            files[path.name] = _File(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return files


FILES = _read()


async def page(if_none_match: Annotated[str, Header()] = "") -> Response:
    """The page."""
    return _answer(FILES["index.html"], if_none_match)


async def static(name: str, if_none_match: Annotated[str, Header()] = "") -> Response:
    """One of the page's files."""
    if name not in FILES:
        raise HTTPException(404)
    return _answer(FILES[name], if_none_match)


def _answer(file: _File, if_none_match: str) -> Response:
    # no-cache: kept, but asked for anew each time, so that files of two versions never meet.
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": POLICY,
        "ETag": file.etag,
        "Referrer-Policy": "no-referrer",
    }
    known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    if known & {file.etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


for _path, _route in (("/", page), ("/static/{name}", static)):
    router.add_api_route(_path, _route, methods=["GET", "HEAD"])
