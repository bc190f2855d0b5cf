"""Request body -> image files, within limits: multipart/form-data, or one image as the raw body."""

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from app.http.problems import BadUpload, TooManyFiles, UnsupportedBody
from app.serving.images import Upload

FIELD = "file"
"""Name of the multipart parts that hold images."""

_MAX_FIELDS = 100
_MAX_HEADER_BYTES = 8_192


async def read_uploads(request: Request, *, max_files: int) -> list[Upload]:
    """Read the whole body and extract its images.

    Args:
        request: its body is limited by the middleware.
        max_files: largest number of images.

    Returns:
        One or more uploads, none of them empty.

    Raises:
        BadUpload: malformed multipart, no part named `file`, or an empty one.
        TooManyFiles: more than `max_files`.
        UnsupportedBody: the content type is neither multipart/form-data nor that of an image.
        ClientDisconnect: the client disconnected before the end of the body.
    """
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        boundary = parse_options_header(header)[1].get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046
            raise _malformed("its content type has no boundary of 1 to 70 characters")
        uploads = _Form(await _read(request), boundary, max_files).uploads
    elif content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        uploads = [Upload(None, await _read(request))]
    else:
        raise UnsupportedBody(
            f"a body of type {content_type} is not accepted: send multipart/form-data with a part named "
            f"{FIELD}, or an image as the body with its image/* type"
        )
    for upload in uploads:
        if not upload.data:
            name = f"the file {upload.filename!r}" if upload.filename else "the body"
            raise BadUpload(f"{name} is empty: send an image")
    return uploads


async def _read(request: Request) -> bytes:
    body = await _body(request.receive)
    request.state.body_read = True
    return body


async def _body(receive: Receive) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return message.get("body", b"")  # type: ignore[no-any-return]  # in one piece, the common case: not copied
    pieces = [message.get("body", b"")]
    while message["type"] == "http.request" and message.get("more_body"):
        message = await receive()
        pieces.append(message.get("body", b""))
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return b"".join(pieces)


class _Form:
    """The files of a multipart/form-data body, with python-multipart's parser.

    Attributes:
        uploads: the parts named `file` that have a filename.
    """

    def __init__(self, body: bytes, boundary: bytes, max_files: int) -> None:
        self.uploads: list[Upload] = []
        self._max_files = max_files
        self._files = self._fields = 0
        self._complete = False
        # Counted before parsing: the parser is slow on data that is full of lines that begin like the boundary.
        if body.count(b"\r\n--" + boundary) > max_files + _MAX_FIELDS + 1:
            raise TooManyFiles(f"more than {max_files} images in one request: send them in several requests")
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
            max_header_size=_MAX_HEADER_BYTES,
        )
        try:
            parser.write(body)
            parser.finalize()
        except FormParserError as error:
            raise _malformed(str(error).rstrip(".")) from error
        if not self._complete:
            raise _malformed("it ends before its last boundary")
        if not self.uploads:
            raise BadUpload(f"there is no image in the upload: send it as a part named {FIELD}, with a filename")

    def _begin(self) -> None:
        self._name, self._value = b"", b""
        self._disposition: bytes | None = None
        self._pieces: list[bytes] = []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = self._value
        self._name, self._value = b"", b""

    def _headers_finished(self) -> None:
        options = parse_options_header(self._disposition)[1] if self._disposition else {}
        if b"name" not in options:
            raise _malformed("a part has no Content-Disposition with a name")
        filename = options.get(b"filename")
        self._is_image = filename is not None and options[b"name"] == FIELD.encode()
        self._filename = None if filename is None else _text(filename)
        if filename is None:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise _malformed(f"more than {_MAX_FIELDS} fields that are not files")
        else:
            self._files += 1
            if self._files > self._max_files:
                raise TooManyFiles(f"more than {self._max_files} images in one request: send them in several requests")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        if self._is_image:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self.uploads.append(Upload(self._filename or None, data))

    def _finish(self) -> None:
        self._complete = True


def _malformed(reason: str) -> BadUpload:
    return BadUpload(f"the multipart body is malformed ({reason}): send it again")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
