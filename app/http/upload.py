"""Request body -> picture files, within limits: multipart/form-data, or one picture as the raw body."""

from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from app.http.multipart import boundary_of, parts_of
from app.http.problems import BadUpload, TooManyFiles, UnsupportedBody

FIELD = "file"


@dataclass(frozen=True, slots=True)
class Upload:
    """One picture file as it was sent; `filename` is None for a raw body."""

    filename: str | None
    data: bytes


async def read_uploads(request: Request, *, max_files: int) -> list[Upload]:
    """Read the whole body and take out its pictures.

    Args:
        request: its body is within the byte limit already, by the middleware.
        max_files: most pictures in it.

    Raises:
        BadUpload: malformed multipart, no part named `file`, or an empty one.
        TooManyFiles: more than `max_files`.
        UnsupportedBody: neither multipart/form-data nor a picture's content type.
    """
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        boundary = boundary_of(header)
        uploads = _in_form(await _body(request.receive), boundary, max_files)
    elif content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        uploads = [Upload(None, await _body(request.receive))]
    else:
        raise UnsupportedBody(
            f"a body of type {content_type} is not accepted: send multipart/form-data with a part named "
            f"{FIELD}, or a picture as the body with its image/* type"
        )
    for upload in uploads:
        if not upload.data:
            name = f"the file {upload.filename!r}" if upload.filename else "the body"
            raise BadUpload(f"{name} is empty: send a picture")
    return uploads


async def _body(receive: Receive) -> bytes:
    """The whole body.

    Raises:
        ClientDisconnect: the caller hung up before its end.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return message.get("body", b"")  # type: ignore[no-any-return]  # as most are, in one piece: not copied
    pieces = [message.get("body", b"")]
    while message["type"] == "http.request" and message.get("more_body"):
        message = await receive()
        pieces.append(message.get("body", b""))
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return b"".join(pieces)


def _in_form(body: bytes, boundary: bytes, max_files: int) -> list[Upload]:
    uploads, files = [], 0
    for part in parts_of(body, boundary):
        if part.filename is not None:
            files += 1
            if files > max_files:
                raise TooManyFiles(f"more than {max_files} pictures in one request: send them in several")
            if part.name == FIELD:
                uploads.append(Upload(part.filename or None, body[part.start : part.stop]))
    if not uploads:
        raise BadUpload(f"there is no picture in the upload: send it as a part named {FIELD}, with a filename")
    return uploads
