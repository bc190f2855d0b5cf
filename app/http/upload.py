"""Request body -> image files, within limits: multipart/form-data, JSON with base64, or one image as the raw body."""

import base64
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from app.http.parameters import PARAMETER_NAMES, invalid
from app.http.problems import BadUpload, BodyTooLarge, InvalidParameter, TooManyFiles, UnsupportedBody
from app.serving.images import Upload

M = TypeVar("M", bound=BaseModel)

FIELD = "file"
"""Name of the multipart parts that hold images."""

_JSON_FORMS = '{"image": "<base64>"} or {"instances": [{"b64": "<base64>"}]}'
_JSON_VALUES_PER_FILE = 10
_MAX_FIELDS = 100
_MAX_JSON_BYTES = 10_000
_MAX_HEADER_BYTES = 8_192


async def read_uploads(request: Request, *, max_files: int) -> list[Upload]:
    """Read the whole body and extract its images.

    Args:
        request: its body is limited by the middleware.
        max_files: largest number of images.

    Returns:
        One or more uploads, none of them empty.

    Raises:
        BadUpload: malformed multipart or JSON, no part named `file`, or an empty one.
        InvalidParameter: a form field has the name of a query parameter.
        TooManyFiles: more than `max_files`.
        UnsupportedBody: the content type is none of these.
        ClientDisconnect: the client disconnected before the end of the body.
    """
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        boundary = parse_options_header(header)[1].get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046
            raise _malformed("its content type has no boundary of 1 to 70 characters")
        uploads = _Form(await read_body(request), boundary, max_files).uploads
    elif content_type.startswith("image/") or content_type in ("", "application/octet-stream"):
        uploads = [Upload(None, await read_body(request))]
    elif content_type == "application/json":
        uploads = _from_json(await read_body(request), max_files)
    else:
        raise UnsupportedBody(
            f"a body of type {content_type} is not accepted: send multipart/form-data with a part named "
            f"{FIELD}, an image as the body with its image/* type, or JSON with the image in base64"
        )
    for upload in uploads:
        if not upload.data:
            name = f"the file {upload.filename!r}" if upload.filename else "the body"
            raise BadUpload(f"{name} is empty: send an image")
    return uploads


async def read_body(request: Request) -> bytes:
    """Read the whole body.

    Raises:
        ClientDisconnect: the client disconnected before the end.
    """
    body = await _body(request.receive)
    request.state.body_read = True
    return body


async def read_json(request: Request, model: type[M]) -> M:
    """Read a small body of JSON. An empty body is an empty object.

    Args:
        request: its body.
        model: the fields.

    Raises:
        BodyTooLarge: it has more than 10,000 bytes.
        InvalidParameter: it is no such JSON.
        ClientDisconnect: the client disconnected before the end.
    """
    body = await read_body(request)
    if len(body) > _MAX_JSON_BYTES:
        raise BodyTooLarge(f"the body has more than {_MAX_JSON_BYTES:,} bytes: send only the fields in /docs")
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        raise invalid(error, "body", known=model.model_fields) from error


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
        self._other: list[str] = []
        self._complete = False
        # Counted before parsing: the parser is slow on data that is full of lines that begin like the boundary.
        if body.count(b"\r\n--" + boundary) > max_files + _MAX_FIELDS + 1:
            raise _too_many(max_files)
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
            raise BadUpload(self._without_image())

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
        if not self._is_image:
            self._note(_text(options[b"name"]), filename is not None)
        if filename is None:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise _malformed(f"more than {_MAX_FIELDS} fields that are not files")
        else:
            self._files += 1
            if self._files > self._max_files:
                raise _too_many(self._max_files)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_image:
            self._pieces.append(data[start:end])

    def _end(self) -> None:
        if self._is_image:
            data = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self.uploads.append(Upload(self._filename or None, data))

    def _finish(self) -> None:
        self._complete = True

    def _note(self, name: str, is_file: bool) -> None:
        """Remember a part that is no image; refuse a parameter, which would have no effect here."""
        if not is_file and name in PARAMETER_NAMES:
            raise InvalidParameter(f"{name} came as a form field: send it in the query string, as in ?{name}=...")
        if name == FIELD:
            name += " (text without a filename)"
        self._other.append(repr(name[:50]))

    def _without_image(self) -> str:
        message = f"there is no image in the upload: send it as a part named {FIELD}, with a filename"
        if not self._other:
            return message
        return f"{message}, as curl -F {FIELD}=@cat.png does. The upload has {', '.join(self._other[:5])}"


def _from_json(body: bytes, max_files: int) -> list[Upload]:
    """The images of {"image": BASE64} or {"instances": [BASE64 or {"b64": BASE64}, ...]}."""
    # Counted before parsing: parsed values take up to a hundred times the memory of their text.
    if sum(body.count(character) for character in b",[{") > _JSON_VALUES_PER_FILE * max_files + _MAX_FIELDS:
        raise BadUpload(f"the JSON has too many values: send {_JSON_FORMS}")
    try:
        content = from_json(body)
    except ValueError as error:
        raise BadUpload(f"the body is no valid JSON ({error}): send it again") from error
    match content:
        case {"image": image}:
            images = [image]
        case {"instances": [*images]}:
            if len(images) > max_files:
                raise _too_many(max_files)
        case _:
            images = []
    if not images:
        raise BadUpload(f"there is no image in the JSON: send {_JSON_FORMS}")
    return [Upload(None, _from_base64(image)) for image in images]


def _from_base64(value: Any) -> bytes:
    text = value.get("b64") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise BadUpload(f"an image in the JSON is not a string: send {_JSON_FORMS}")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise BadUpload(f"an image in the JSON is not valid base64 ({error}): encode the bytes of the file") from error


def _too_many(limit: int) -> TooManyFiles:
    images = "one image" if limit == 1 else f"{limit} images"
    return TooManyFiles(f"more than {images} in one request: send them in several requests")


def _malformed(reason: str) -> BadUpload:
    return BadUpload(f"the multipart body is malformed ({reason}): send it again")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
