import asyncio

import pytest
from starlette.requests import Request
from starlette.types import Message

from app.http.problems import BadUpload, TooManyFiles, UnsupportedBody
from app.http.upload import Upload, read_uploads


def request_of(chunks: list[bytes], content_type: str | None) -> Request:
    """A request whose body arrives in these pieces."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    remaining = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(remaining)

    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}, receive)


def read(body: bytes, content_type: str | None, *, pieces: int = 1, max_files: int = 10) -> list[Upload]:
    size = -(-len(body) // pieces) or 1
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    return asyncio.run(read_uploads(request_of(chunks, content_type), max_files=max_files))


def part(data: bytes, disposition: str) -> bytes:
    return f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


FILE = 'form-data; name="file"; filename="{}"'
MULTIPART = "multipart/form-data; boundary=b"


@pytest.mark.parametrize("content_type", ["image/png", "image/whatever", "application/octet-stream", "", None])
def test_a_raw_body_is_one_upload_without_a_name(content_type: str | None) -> None:
    assert read(b"picture", content_type) == [Upload(None, b"picture")]


@pytest.mark.parametrize("pieces", [1, 2, 7, 10_000])
def test_parts_are_the_same_however_the_body_is_cut_up(pieces: int) -> None:
    data = bytes(range(256)) * 4 + b"\r\n--bb\r\n--" + b"\r\n"
    body = form(part(data, FILE.format("a.png")), part(b"2", FILE.format("b.png")))
    assert read(body, MULTIPART, pieces=pieces) == [Upload("a.png", data), Upload("b.png", b"2")]


@pytest.mark.parametrize("cut", [1, 3, 6, 20, 70, 100])
def test_a_form_that_is_cut_off_is_refused_however_late(cut: int) -> None:
    body = form(part(b"1" * 50, FILE.format("a.png")), part(b"2" * 50, FILE.format("b.png")))
    end = len(body) - len(b"\r\n") - cut
    with pytest.raises(BadUpload, match="malformed"):
        read(body[:end], MULTIPART)


def test_a_form_may_end_without_its_last_line_break() -> None:
    assert read(form(part(b"1", FILE.format("a"))).rstrip(), MULTIPART) == [Upload("a", b"1")]


def test_the_boundary_may_be_quoted_and_the_type_in_capitals() -> None:
    body = form(part(b"1", FILE.format("a")))
    assert read(body, 'Multipart/Form-Data; charset=utf-8; boundary="b"') == [Upload("a", b"1")]


def test_an_unknown_charset_is_no_fault() -> None:
    assert read(form(part(b"1", FILE.format("a"))), MULTIPART + "; charset=klingon") == [Upload("a", b"1")]


def test_a_filename_that_is_no_unicode_is_kept_somehow() -> None:
    body = form(b'--b\r\nContent-Disposition: form-data; name="file"; filename="\xe9.png"\r\n\r\n1\r\n')
    assert read(body, MULTIPART) == [Upload("é.png", b"1")]


def test_fields_that_are_no_files_are_left_out() -> None:
    body = form(
        part(b"text", 'form-data; name="file"'), part(b"1", FILE.format("a")), part(b"x", 'form-data; name="y"')
    )
    assert read(body, MULTIPART) == [Upload("a", b"1")]


def test_as_many_files_as_the_limit_are_taken_and_one_more_is_not() -> None:
    parts = [part(b"1", FILE.format(number)) for number in range(4)]
    assert len(read(form(*parts), MULTIPART, max_files=4)) == 4
    with pytest.raises(TooManyFiles, match="more than 3 pictures"):
        read(form(*parts), MULTIPART, max_files=3)


def test_too_many_fields_are_refused() -> None:
    fields, file = [part(b"1", 'form-data; name="x"')] * 101, part(b"1", FILE.format("a"))
    assert read(form(*fields[1:], file), MULTIPART) == [Upload("a", b"1")]
    with pytest.raises(BadUpload, match="more than 100 fields"):
        read(form(*fields, file), MULTIPART)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (form(part(b"", FILE.format("a.png"))), "the file 'a.png' is empty"),
        (form(part(b"", FILE.format(""))), "is empty"),
        (form(), "no picture in the upload|malformed"),
        (form(part(b"1", 'form-data; name="image"; filename="a.png"')), "as a part named file"),
        (form(part(b"1", 'form-data; name="file"')), "with a filename"),
        (form(part(b"1", "form-data")), "malformed"),
        (b"--c\r\n\r\n1\r\n--c--\r\n", "malformed"),
    ],
    ids=[
        "empty file",
        "empty nameless file",
        "no parts",
        "other name",
        "text field",
        "nameless part",
        "other boundary",
    ],
)
def test_a_form_without_a_picture_is_refused_and_says_why(body: bytes, says: str) -> None:
    with pytest.raises(BadUpload, match=says):
        read(body, MULTIPART)


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(BadUpload, match="the body is empty"):
        read(b"", "image/png")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/json", "multipart/mixed; boundary=b", "video/mp4", "x"]
)
def test_another_type_of_body_is_refused_by_its_name(content_type: str) -> None:
    with pytest.raises(UnsupportedBody, match=content_type.split(";", maxsplit=1)[0]):
        read(b"1", content_type)


def test_files_of_megabytes_are_read_whole() -> None:
    data = bytes(range(256)) * 12_000
    (upload,) = read(form(part(data, FILE.format("a"))), MULTIPART, pieces=40)
    assert upload.data == data
