"""multipart/form-data (RFC 7578) of a body that is in memory already: where its parts lie, found by searching.

A parser that is fed piece by piece looks at every line break within a picture; to take a CIFAR-10 picture out of its
form that way took as long as to decode it.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from python_multipart.multipart import parse_options_header

from app.http.problems import BadUpload

_FIELDS = 100
_HEADER_BYTES = 8_192
# Lines that begin as a boundary does and are none. Honest bodies have none, for who sends one chooses its boundary.
_FALSE_BOUNDARIES = 1_000
# What most callers send, told at a glance; the library reads what else is allowed.
_PLAIN_TYPE = re.compile(r"multipart/form-data; ?boundary=([\w'+.?-]{1,70})", re.ASCII)
_PLAIN_FILE = re.compile(
    rb'Content-Disposition: form-data; name="([^"\\\r]*)"; filename="([^"\\\r]*)"\r\n', re.IGNORECASE
)


class Part(NamedTuple):
    """A part: its name, its filename, None where it has none, and where its content lies in the body."""

    name: str
    filename: str | None
    start: int
    stop: int


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type names.

    Raises:
        BadUpload: it names none, or one that is longer than RFC 2046 allows.
    """
    if plain := _PLAIN_TYPE.fullmatch(content_type):
        return plain[1].encode()
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise malformed("its content type names no boundary of 1 to 70 characters")
    return boundary


def parts_of(body: bytes, boundary: bytes) -> Iterator[Part]:
    """The parts of a body, in order.

    Raises:
        BadUpload: it is malformed, has too many fields that are no files, or ends before its last boundary.
    """
    delimiter = b"\r\n--" + boundary
    # The first boundary may lack the line break before it.
    _, start = _next(body, delimiter, -2 if body.startswith(delimiter[2:]) else 0)
    fields = 0
    while start is not None:
        content = body.find(b"\r\n\r\n", start - 2, start + _HEADER_BYTES) + 4
        if content < 4:
            raise malformed("a part's headers do not end")
        stop, following = _next(body, delimiter, content)
        name, filename = _described(body[start : content - 2])
        fields += filename is None
        if fields > _FIELDS:
            raise malformed(f"more than {_FIELDS} fields that are no files")
        yield Part(name, filename, content, stop)
        start = following


def malformed(why: str) -> BadUpload:
    """The error for a body that is no multipart/form-data."""
    return BadUpload(f"the multipart body is malformed ({why}): send it anew")


def _next(body: bytes, delimiter: bytes, position: int) -> tuple[int, int | None]:
    """Where the next boundary begins, and where the part after it does; None after the last one.

    Args:
        body: of the request.
        delimiter: a boundary, from the line break before it on.
        position: to search from; -2 where one lies at the beginning, without its line break.
    """
    for _ in range(_FALSE_BOUNDARIES):
        found = position if position < 0 else body.find(delimiter, position)
        if found == -1:
            raise malformed("it ends before its last boundary")
        after = found + len(delimiter)
        if body.startswith(b"\r\n", after):
            return found, after + 2
        if body.startswith(b"--", after):
            return found, None
        line = body.find(b"\r\n", after, after + 80)
        if line >= 0 and not body[after:line].strip(b" \t"):  # a boundary may have blanks after it
            return found, line + 2
        position = max(0, found + 2)
    raise malformed("it is full of lines that are almost boundaries")


def _described(headers: bytes) -> tuple[str, str | None]:
    """A part's name and filename, by its Content-Disposition."""
    if plain := _PLAIN_FILE.match(headers):
        return _text(plain[1]), _text(plain[2])
    for line in headers.split(b"\r\n"):
        field, _, value = line.partition(b":")
        if field.strip().lower() == b"content-disposition":
            options = parse_options_header(value.strip())[1]
            if b"name" in options:
                filename = options.get(b"filename")
                return _text(options[b"name"]), None if filename is None else _text(filename)
    raise malformed("a part has no Content-Disposition with a name")


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
