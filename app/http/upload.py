"""Request body -> image files, within limits: multipart/form-data, JSON with base64, or one image as the raw body."""

import binascii
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from app.http.deadline import Deadline
from app.http.encodings import from_base64
from app.http.parameters import invalid
from app.http.problems import BadFile, BadUpload, BodyTooLarge, InvalidParameter, TooManyFiles, UnsupportedBody
from app.serving.images import Upload

M = TypeVar("M", bound=BaseModel)

FIELD = "file"
"""Name of the multipart parts that hold images."""

_JSON_FORMS = '{"image": "<base64>"} or {"instances": [{"b64": "<base64>"}]}'
_JSON_VALUES_PER_FILE = 10
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_MAX_FIELDS = 100
_MAX_JSON_BYTES = 10_000
# Bytes of a body that needs no room among the uploads.
_SMALL = 64 << 10
_MAX_HEADER_BYTES = 8_192
# Parameters of a header. The parser takes 2 µs for each, empty ones too.
_MAX_OPTIONS = 100

# "binary/octet-stream" is the default type of S3.
_ANY_BYTES = ("application/octet-stream", "binary/octet-stream")
# The type that curl sends with --data-binary if it is given none.
_CURL = "application/x-www-form-urlencoded"

# What follows a boundary: two dashes after the last part, or else padding and a line break (RFC 2046, 5.1.1).
_AFTER_BOUNDARY = re.compile(rb"--|[ \t]{0,64}(\r?\n)")
_FOLDED = re.compile(rb"\r?\n[ \t]+")
# RFC 8187: charset'language'percent-encoded. parse_options_header leaves it out, but clients send it.
_EXTENDED_NAME = re.compile(rb";\s*filename\*\s*=\s*\"?[^';\"]*'[^';\"]*'([^;\"]*)", re.IGNORECASE)


async def read_uploads(request: Request, *, max_files: int, parameters: Collection[str] = ()) -> list[Upload]:
    """Read the whole body and extract its images.

    Args:
        request: its body is limited by the middleware.
        max_files: largest number of images.
        parameters: names of the query parameters, which are refused as form fields.

    Returns:
        One or more uploads. One that is empty or not decodable has an error.

    Raises:
        BadUpload: malformed multipart or JSON, or there is no image.
        InvalidParameter: a form field has the name of a query parameter.
        TooManyFiles: more than `max_files`.
        UnsupportedBody: the content type is none of these.
        ClientDisconnect: the client disconnected before the end of the body.
    """
    header = request.headers.get("content-type", "")
    content_type = header.partition(";")[0].strip().lower()
    if content_type == "multipart/form-data":
        boundary = _options(header.encode("latin-1")).get(b"boundary", b"")
        if not 1 <= len(boundary) <= 70:  # RFC 2046
            raise _malformed("its content type has no boundary of 1 to 70 characters")
        return _from_form(await read_body(request), boundary, max_files, parameters)
    if content_type.startswith("image/") or content_type in _ANY_BYTES:
        return [_upload(await read_body(request), "the body")]
    if content_type in ("application/json", "text/json") or content_type.endswith("+json"):
        return _from_json(await read_body(request), max_files)
    if content_type not in ("", _CURL):
        raise _unsupported(content_type)
    body = await read_body(request)
    if body.startswith((b"{", _BYTE_ORDER_MARK)):
        return _from_json(body, max_files)
    if content_type and body.isascii():
        raise _unsupported(content_type)
    return [_upload(body, "the body")]


def is_small(request: Request) -> bool:
    """Whether the body has arrived already, or has at most 64 KiB by its Content-Length."""
    length = request.headers.get("content-length", "")
    announced = int(length) if length.isdecimal() and len(length) <= len(str(_SMALL)) else math.inf
    return getattr(request.state, "complete", False) or announced <= _SMALL


async def read_body(request: Request) -> bytes:
    """Read the whole body.

    Raises:
        ClientDisconnect: the client disconnected before the end.
    """
    body = await _body(request.receive, getattr(request.state, "deadline", None))
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
        return model.model_validate_json(body.removeprefix(_BYTE_ORDER_MARK) or b"{}")
    except ValidationError as error:
        raise invalid(error, model, "field") from error


async def _body(receive: Receive, deadline: Deadline | None) -> bytes:
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        return message.get("body", b"")  # type: ignore[no-any-return]  # in one piece, the common case: not copied
    pieces = [message.get("body", b"")]
    if deadline:
        deadline.body_continues(len(pieces[0]))
    while message["type"] == "http.request" and message.get("more_body"):
        message = await receive()
        pieces.append(message.get("body", b""))
        if deadline:
            deadline.body_continues(len(pieces[-1]))
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    if deadline:
        deadline.body_ends()
    return b"".join(pieces)


def _upload(data: bytes, what: str, filename: str | None = None) -> Upload:
    """A file, with an error if it is empty.

    Args:
        data: its bytes.
        what: how an error names it.
        filename: as uploaded.
    """
    return Upload(filename, data) if data else _bad(f"{what} is empty: send an image", filename)


def _bad(reason: str, filename: str | None = None) -> Upload:
    return Upload(filename, b"", BadFile(reason))


def _from_form(body: bytes, boundary: bytes, max_files: int, parameters: Collection[str]) -> list[Upload]:
    """The parts of a multipart/form-data body that are named `file`. A file input without a file is left out."""
    uploads: list[Upload] = []
    others: list[str] = []
    files = fields = 0
    for part in _parts(body, boundary, max_files):
        blank = part.filename == "" and not part.data
        if part.is_file and not blank:
            files += 1
            if files > max_files:
                raise _too_many(max_files)
        else:
            fields += 1
            if fields > _MAX_FIELDS:
                raise _malformed(f"more than {_MAX_FIELDS} fields that are not files")
        if part.name == FIELD and part.is_file and not blank:
            uploads.append(_from_part(part))
        elif part.name in parameters and not part.is_file:
            raise InvalidParameter(
                f"{part.name} came as a form field: send it in the query string, as in ?{part.name}=..."
            )
        else:
            note = " (no file was chosen)" if blank else " (text without a filename)" if part.name == FIELD else ""
            others.append(repr(part.name[:50] + note))
    if not uploads:
        message = f"there is no image in the upload: send it as a part named {FIELD}, with a filename"
        if others:
            message += f", as curl -F {FIELD}=@cat.png does. The upload has {', '.join(others[:5])}"
        raise BadUpload(message)
    return uploads


class _Part(NamedTuple):
    """A part of a multipart body.

    Attributes:
        name: of the form field.
        filename: None if there is none.
        is_file: whether it has a filename or the type of a file.
        encoding: Content-Transfer-Encoding in lower case.
        data: its bytes, not decoded.
    """

    name: str
    filename: str | None
    is_file: bool
    encoding: bytes
    data: memoryview


def _parts(body: bytes, boundary: bytes, max_files: int) -> Iterator[_Part]:
    """Find the parts of a multipart body.

    The body is in memory as a whole, so a part is found by two searches. The text before the first boundary and after
    the last one is ignored. All lines end as the first boundary does, in CRLF or in LF.

    Raises:
        BadUpload: it is malformed.
        TooManyFiles: there are more lines that begin like the boundary than the limits on files and fields allow.
    """
    dashes = b"--" + boundary
    line_end = b""
    start, position = 0, 0 if body.startswith(dashes) else body.find(b"\n" + dashes) + 1
    if position == 0 and not body.startswith(dashes):
        raise _malformed("its boundary is not in it")
    for _ in range(max_files + _MAX_FIELDS + 2):
        after = _AFTER_BOUNDARY.match(body, position + len(dashes))
        if after:
            if line_end:
                yield _part(body, line_end, start, position - len(line_end))
            if after[0] == b"--":
                return
            line_end = line_end or after[1]
            start = position = after.end()
        position = body.find((line_end or b"\n") + dashes, position) + len(line_end or b"\n")
        if position < len(line_end or b"\n"):
            raise _malformed("it ends before its last boundary")
    raise _too_many(max_files)


def _part(body: bytes, line_end: bytes, start: int, end: int) -> _Part:
    """The part between two boundaries."""
    blank = body.find(line_end * 2, start - len(line_end), min(end, start + _MAX_HEADER_BYTES) + len(line_end))
    if blank < 0:
        raise _malformed(f"a part has no blank line after its headers of at most {_MAX_HEADER_BYTES:,} bytes")
    headers = _headers(body[start:blank])
    disposition = headers.get(b"content-disposition", b"")
    options = _options(disposition)
    if b"name" not in options:
        raise _malformed("a part has no Content-Disposition with a name")
    filename = options.get(b"filename")
    if extended := _EXTENDED_NAME.search(disposition):
        filename = unquote_to_bytes(extended[1])
    kind = _text(headers.get(b"content-type", b"")).partition(";")[0].strip().lower()
    return _Part(
        name=_text(options[b"name"]),
        filename=None if filename is None else _text(filename),
        is_file=filename is not None or kind.startswith("image/") or kind in _ANY_BYTES,
        encoding=headers.get(b"content-transfer-encoding", b"").lower(),
        data=memoryview(body)[blank + 2 * len(line_end) : end],
    )


def _options(header: bytes) -> Mapping[bytes, bytes]:
    """The parameters of a header, by name."""
    if header.count(b";") > _MAX_OPTIONS:
        raise _malformed(f"a header has more than {_MAX_OPTIONS} parameters")
    return parse_options_header(header)[1]


def _headers(head: bytes) -> Mapping[bytes, bytes]:
    """The headers of a part, by name in lower case."""
    headers = {}
    for line in _FOLDED.sub(b" ", head).splitlines():
        name, colon, value = line.partition(b":")
        if not colon:
            raise _malformed("a header of a part has no colon")
        headers[name.strip().lower()] = value.strip()
    return headers


def _from_part(part: _Part) -> Upload:
    """The file of a part. A Content-Transfer-Encoding that is not named here leaves the bytes as they are."""
    filename, data = part.filename or None, bytes(part.data)
    what = f"the file {filename!r}" if filename else "the file"
    if part.encoding == b"base64":
        try:
            data = from_base64(data)
        except ValueError:
            return _bad(f"{what} is not valid base64: encode its bytes, or send them as they are", filename)
    elif part.encoding == b"quoted-printable":
        data = binascii.a2b_qp(data)
    return _upload(data, what, filename)


def _from_json(body: bytes, max_files: int) -> list[Upload]:
    """The images of {"image": BASE64} or {"instances": [BASE64 or {"b64": BASE64}, ...]}."""
    # Counted before parsing: parsed values take up to a hundred times the memory of their text.
    if sum(body.count(character) for character in b",[{") > _JSON_VALUES_PER_FILE * max_files + _MAX_FIELDS:
        raise BadUpload(f"the JSON has too many values: send {_JSON_FORMS}")
    try:
        content = from_json(body.removeprefix(_BYTE_ORDER_MARK))
    except ValueError as error:
        raise BadUpload(f"the body is no valid JSON ({error}): send it again") from error
    match content:
        case {"image": image}:
            return [_from_value(image, "image")]
        case {"instances": [_, *_] as images}:
            if len(images) > max_files:
                raise _too_many(max_files)
            return [_from_value(image, f"instances[{index}]") for index, image in enumerate(images)]
    raise BadUpload(f"there is no image in the JSON: send {_JSON_FORMS}")


def _from_value(value: Any, what: str) -> Upload:
    """The image in a value of JSON."""
    text = value.get("b64") if isinstance(value, dict) else value
    if not isinstance(text, str):
        return _bad(f"{what} is not a string: send {_JSON_FORMS}")
    try:
        return _upload(from_base64(text), what)
    except ValueError:
        return _bad(f"{what} is not valid base64: encode the bytes of the file")


def _unsupported(content_type: str) -> UnsupportedBody:
    return UnsupportedBody(
        f"a body of type {content_type} is not accepted: send multipart/form-data with a part named "
        f"{FIELD}, an image as the body with its image/* type, or JSON with the image in base64"
    )


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
