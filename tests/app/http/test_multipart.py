"""Against Starlette's own parser, which feeds python-multipart, on whatever a caller may send."""

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartParser

from app.http.multipart import boundary_of, parts_of
from app.http.problems import BadUpload


@dataclass(frozen=True)
class Sent:
    """A part as it is sent."""

    name: str
    filename: str | None
    content: bytes
    type: str | None


# Whatever looks like the boundary or a piece of it, and all else.
pieces = st.sampled_from([b"\r\n", b"--", b"--bound", b"\r\n--boun", b"\r\n--boundx", b"\r", b"\n", b"b", b""])
contents = (
    st.lists(pieces | st.binary(max_size=20), max_size=8).map(b"".join).filter(lambda data: b"\r\n--bound" not in data)
)
names = st.text(st.characters(codec="utf-8", exclude_characters='"\\\r\n\0;'), min_size=1, max_size=10)
sent_parts = st.builds(
    Sent, names, st.none() | names, contents, st.none() | st.sampled_from(["image/png", "text/plain; charset=utf-8"])
)


def body_of(sent: list[Sent], *, padding: bytes = b"", preamble: bytes = b"", epilogue: bytes = b"\r\n") -> bytes:
    body = preamble
    for part in sent:
        filename = "" if part.filename is None else f'; filename="{part.filename}"'
        kind = "" if part.type is None else f"Content-Type: {part.type}\r\n"
        head = f'Content-Disposition: form-data; name="{part.name}"{filename}\r\n{kind}\r\n'
        body += b"--bound" + padding + b"\r\n" + head.encode() + part.content + b"\r\n"
    return body + b"--bound--" + epilogue


def ours(body: bytes) -> list[tuple[str, str | None, bytes]]:
    return [(part.name, part.filename, body[part.start : part.stop]) for part in parts_of(body, b"bound")]


def starlettes(body: bytes) -> list[tuple[str, str | None, bytes]]:
    async def parsed() -> list[tuple[str, str | None, bytes]]:
        async def stream() -> AsyncGenerator[bytes, None]:
            yield body

        headers = Headers({"content-type": "multipart/form-data; boundary=bound"})
        form = await MultiPartParser(headers, stream()).parse()
        found: list[tuple[str, str | None, bytes]] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                found.append((name, value.filename, await value.read()))
            else:
                found.append((name, None, b""))  # text, which it decodes
        await form.close()
        return found

    return asyncio.run(parsed())


@given(st.lists(sent_parts, min_size=1, max_size=4))
def test_what_was_sent_is_what_is_found_and_what_starlette_finds(sent: list[Sent]) -> None:
    body = body_of(sent)
    found = ours(body)
    assert found == [(part.name, part.filename, part.content) for part in sent]
    assert [(*part[:2], b"" if part[1] is None else part[2]) for part in found] == starlettes(body)


@given(st.binary(max_size=200) | st.lists(pieces | st.binary(max_size=8), max_size=30).map(b"".join))
def test_whatever_comes_is_parts_or_a_bad_upload(body: bytes) -> None:
    for data in (body, b"--bound\r\n" + body, body_of([Sent("file", "a", b"1", None)])[:-12] + body):
        try:
            found = list(parts_of(data, b"bound"))
        except BadUpload:
            continue
        assert all(0 < part.start <= part.stop <= len(data) for part in found)


def test_blanks_after_a_boundary_and_text_around_the_parts_are_allowed() -> None:
    sent = [Sent("file", "a.png", b"1", "image/png"), Sent("file", "b.png", b"2", None)]
    body = body_of(sent, padding=b" \t ", preamble=b"to whom it may concern\r\n", epilogue=b"\r\nregards")
    assert ours(body) == [("file", "a.png", b"1"), ("file", "b.png", b"2")]


@pytest.mark.parametrize(
    ("head", "name", "filename"),
    [
        (b'content-disposition:form-data;name="file";filename="a.png"', "file", "a.png"),
        (b"Content-Disposition: form-data; name=file; filename=a.png", "file", "a.png"),
        (b'Content-Disposition: form-data; filename="a.png"; name="file"', "file", "a.png"),
        (b'Content-Disposition: form-data; name="file"; filename="a\\"b.png"', "file", 'a"b.png'),
        (b'Content-Disposition: form-data; name="file"; filename="C:\\pictures\\a.png"', "file", "a.png"),
        (b'Content-Disposition: form-data; name="file"; filename="a"; filename*=UTF-8\'\'b', "file", "a"),
        (
            'Content-Disposition: form-data; name="file"; filename="Katze \u00e4.png"'.encode(),
            "file",
            "Katze \u00e4.png",
        ),
        (b'Content-Type: image/png\r\nContent-Disposition: form-data; name="file"; filename="a"', "file", "a"),
    ],
)
def test_a_disposition_is_read_as_callers_write_it(head: bytes, name: str, filename: str) -> None:
    assert ours(b"--bound\r\n" + head + b"\r\n\r\n1\r\n--bound--") == [(name, filename, b"1")]


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxk", b"----WebKitFormBoundary7MA4YWxk"),
        ('multipart/form-data; boundary="a b:c"', b"a b:c"),
        ("Multipart/Form-Data;boundary=x; charset=utf-8", b"x"),
    ],
)
def test_the_boundary_is_found(content_type: str, boundary: bytes) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "x" * 71], ids=["none", "empty", "overlong"])
def test_no_boundary_or_an_overlong_one_is_a_bad_upload(boundary: str) -> None:
    with pytest.raises(BadUpload, match="boundary of 1 to 70"):
        boundary_of("multipart/form-data" + boundary)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"--bound\r\n" + b"x: y\r\n" * 2000 + b"\r\n1\r\n--bound--", "headers do not end"),
        (b"--bound\r\nContent-Disposition: form-data\r\n\r\n1\r\n--bound--", "with a name"),
        (b"--bound\r\n\r\n1\r\n--bound--", "with a name"),
        (b"--bound", "last boundary"),
        (b"", "last boundary"),
    ],
    ids=["endless headers", "no name", "no headers", "no end", "nothing"],
)
def test_a_malformed_body_says_why(body: bytes, says: str) -> None:
    with pytest.raises(BadUpload, match=says):
        ours(body)


def test_lines_that_are_almost_boundaries_do_not_keep_the_service_busy() -> None:
    hostile = (
        b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"\r\n--boundx" * 2_000_000
    )
    began = time.monotonic()
    with pytest.raises(BadUpload, match="almost boundaries"):
        ours(hostile)
    assert time.monotonic() - began < 0.1
