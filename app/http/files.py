"""Static files, from memory, compressed once."""

import gzip
import hashlib
import mimetypes
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.http.compression import accepted

_COMPRESSED_ALREADY = {"image/jpeg", "image/png"}


class _Content(NamedTuple):
    """A file as it is sent: its type, its bytes, those of its gzip stream or None, and a hash of it."""

    media_type: str
    body: bytes
    compressed: bytes | None
    digest: str


@lru_cache(maxsize=64)
def _read(path: Path, _modified: int) -> _Content:
    """Read a file again only if it was modified."""
    body = path.read_bytes()
    media_type = mimetypes.guess_type(path)[0] or "application/octet-stream"
    compressed = None if media_type in _COMPRESSED_ALREADY else gzip.compress(body, mtime=0)
    return _Content(media_type, body, compressed, hashlib.sha256(body).hexdigest()[:32])


class Files:
    """The files of a folder.

    Args:
        folder: no files of folders within it are served.
    """

    def __init__(self, folder: Path) -> None:
        self.paths = {path.name: path for path in folder.iterdir() if path.is_file()}

    def response(self, name: str, request: Request) -> Response:
        """The response with a file, or 304 if the client has it.

        The compressed file is another representation, so it has another ETag.

        Raises:
            HTTPException: there is no such file.
        """
        path = self.paths.get(name)
        if path is None:
            raise HTTPException(404)
        content = _read(path, path.stat().st_mtime_ns)
        body, etag = content.body, f'"{content.digest}"'
        headers = {}
        if content.compressed is not None:
            headers["Vary"] = "Accept-Encoding"
            if accepted(request.headers.get("accept-encoding", "")) == "gzip":
                body, etag = content.compressed, f'"{content.digest}-gzip"'
                headers["Content-Encoding"] = "gzip"
        headers["ETag"] = etag
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if known & {etag, "*"}:
            headers.pop("Content-Encoding", None)
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type=content.media_type)
