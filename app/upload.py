"""Request body -> picture files, within limits: multipart/form-data, or one picture as the raw body."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.problems import BadUpload, TooManyFiles, UnsupportedBody

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
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        uploads = await _from_multipart(request, max_files)
    elif content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        uploads = [Upload(None, await request.body())]
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


class _Parser(MultiPartParser):
    """Starlette's parser, but it keeps files in memory, where the body limit bounds them, and wants the last boundary.

    Without that, an upload that was cut off would lose its last picture and nobody would be told.
    """

    spool_max_size = 0  # SpooledTemporaryFile never rolls over to a disk at 0

    def __init__(self, request: Request, *, max_files: int) -> None:
        super().__init__(request.headers, self._whole(request), max_files=max_files, max_fields=100)
        self._ended = False

    def on_end(self) -> None:
        self._ended = True

    async def _whole(self, request: Request) -> AsyncGenerator[bytes, None]:
        async for chunk in request.stream():
            yield chunk
        if not self._ended:
            raise MultiPartException("It ends before its last boundary.")


async def _from_multipart(request: Request, max_files: int) -> list[Upload]:
    too_many = TooManyFiles(f"more than {max_files} pictures in one request: send them in several")
    try:
        form = await _Parser(request, max_files=max_files).parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise too_many from error
        raise BadUpload(f"the multipart body is malformed ({error.message.rstrip('.')}): send it anew") from error
    files = [part for part in form.getlist(FIELD) if isinstance(part, UploadFile)]
    uploads = [Upload(part.filename or None, await part.read()) for part in files]
    await form.close()
    if not uploads:
        raise BadUpload(f"there is no picture in the upload: send it as a part named {FIELD}, with a filename")
    return uploads
