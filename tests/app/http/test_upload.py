import asyncio
import base64
import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from app.http.parameters import ExplainParams
from app.http.problems import BadUpload, InvalidParameter, TooManyFiles, UnsupportedBody
from app.http.upload import read_uploads
from app.serving.images import Upload


def request_of(chunks: list[bytes], content_type: str | None) -> Request:
    """A request whose body arrives in these pieces."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    remaining = iter([*messages, {"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Message:
        return next(remaining)

    headers = [] if content_type is None else [(b"content-type", content_type.encode("latin-1"))]
    return Request({"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}, receive)


def read(body: bytes, content_type: str | None, *, pieces: int = 1, max_files: int = 10) -> list[Upload]:
    """The uploads. As the routes do, it raises the error of an image that is alone."""
    size = -(-len(body) // pieces) or 1
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    request = request_of(chunks, content_type)
    uploads = asyncio.run(read_uploads(request, max_files=max_files, parameters=ExplainParams.model_fields))
    if len(uploads) == 1 and uploads[0].error:
        raise uploads[0].error
    return uploads


def part(data: bytes, disposition: str) -> bytes:
    return f"--b\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


FILE = 'form-data; name="file"; filename="{}"'
MULTIPART = "multipart/form-data; boundary=b"


@pytest.mark.parametrize("content_type", ["image/png", "image/whatever", "application/octet-stream", "", None])
def test_a_raw_body_is_one_upload_without_a_filename(content_type: str | None) -> None:
    assert read(b"image", content_type) == [Upload(None, b"image")]


@pytest.mark.parametrize("pieces", [1, 2, 7, 10_000])
def test_parts_do_not_depend_on_how_the_body_arrives(pieces: int) -> None:
    data = bytes(range(256)) * 4 + b"\r\n--bb\r\n--" + b"\r\n"
    body = form(part(data, FILE.format("a.png")), part(b"2", FILE.format("b.png")))
    assert read(body, MULTIPART, pieces=pieces) == [Upload("a.png", data), Upload("b.png", b"2")]


@pytest.mark.parametrize("cut", [1, 3, 6, 20, 70, 100])
def test_a_truncated_form_is_refused(cut: int) -> None:
    body = form(part(b"1" * 50, FILE.format("a.png")), part(b"2" * 50, FILE.format("b.png")))
    end = len(body) - len(b"\r\n") - cut
    with pytest.raises(BadUpload, match="malformed"):
        read(body[:end], MULTIPART)


def test_a_form_may_end_without_its_last_line_break() -> None:
    assert read(form(part(b"1", FILE.format("a"))).rstrip(), MULTIPART) == [Upload("a", b"1")]


def test_the_boundary_may_be_quoted_and_the_type_in_capitals() -> None:
    body = form(part(b"1", FILE.format("a")))
    assert read(body, 'Multipart/Form-Data; charset=utf-8; boundary="b"') == [Upload("a", b"1")]


def test_an_unknown_charset_is_ignored() -> None:
    assert read(form(part(b"1", FILE.format("a"))), MULTIPART + "; charset=klingon") == [Upload("a", b"1")]


def test_a_filename_that_is_not_utf_8_is_read_as_latin_1() -> None:
    body = form(b'--b\r\nContent-Disposition: form-data; name="file"; filename="\xe9.png"\r\n\r\n1\r\n')
    assert read(body, MULTIPART) == [Upload("é.png", b"1")]


def test_fields_that_are_not_files_are_ignored() -> None:
    body = form(
        part(b"text", 'form-data; name="file"'), part(b"1", FILE.format("a")), part(b"x", 'form-data; name="y"')
    )
    assert read(body, MULTIPART) == [Upload("a", b"1")]


def test_the_number_of_files_is_limited() -> None:
    parts = [part(b"1", FILE.format(number)) for number in range(4)]
    assert len(read(form(*parts), MULTIPART, max_files=4)) == 4
    with pytest.raises(TooManyFiles, match="more than 3 images"):
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
        (form(part(b"", FILE.format(""))), r"The upload has 'file \(no file was chosen\)'"),
        (form(), "no image in the upload|malformed"),
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
def test_a_form_without_an_image_is_refused_with_the_reason(body: bytes, says: str) -> None:
    with pytest.raises(BadUpload, match=says):
        read(body, MULTIPART)


def test_a_form_without_an_image_names_its_parts() -> None:
    body = form(part(b"1", 'form-data; name="image"; filename="a.png"'), part(b"2", 'form-data; name="file"'))
    with pytest.raises(BadUpload) as raised:
        read(body, MULTIPART)
    assert str(raised.value).endswith(
        "as curl -F file=@cat.png does. The upload has 'image', 'file (text without a filename)'"
    )


@pytest.mark.parametrize("name", ["top_k", "label", "views"])
def test_a_parameter_in_the_form_is_refused(name: str) -> None:
    body = form(part(b"1", FILE.format("a")), part(b"3", f'form-data; name="{name}"'))
    with pytest.raises(InvalidParameter, match=f"{name} came as a form field: send it in the query string"):
        read(body, MULTIPART)


BASE64 = base64.b64encode(b"image").decode()


@pytest.mark.parametrize(
    "content",
    [
        {"image": BASE64},
        {"image": f"data:image/png;base64,{BASE64}"},
        {"instances": [BASE64]},
        {"instances": [{"b64": BASE64}]},
    ],
)
def test_json_contains_images_in_base64(content: object) -> None:
    assert read(json.dumps(content).encode(), "application/json; charset=utf-8") == [Upload(None, b"image")]


def test_json_contains_several_images_within_the_limit() -> None:
    body = json.dumps({"instances": [BASE64, {"b64": base64.b64encode(b"2").decode()}]}).encode()
    assert read(body, "application/json", max_files=2) == [Upload(None, b"image"), Upload(None, b"2")]
    with pytest.raises(TooManyFiles, match="more than one image"):
        read(body, "application/json", max_files=1)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no valid JSON"),
        (b"\xff\xd8", "no valid JSON"),
        (b'{"image": "' + BASE64.encode(), "no valid JSON"),
        (b"[" * 150, "no valid JSON"),
        (b"[" * 100_000, "too many values"),
        (b'{"instances": [' + b"{}," * 1_000_000 + b"{}]}", "too many values"),
        (b"[]", "no image in the JSON"),
        (b"{}", "no image in the JSON"),
        (b'{"instances": []}', "no image in the JSON"),
        (b'{"instances": "aW1hZ2U="}', "no image in the JSON"),
        (b'{"image": null}', "is not a string"),
        (b'{"image": ["aW1hZ2U="]}', "is not a string"),
        (b'{"instances": [{"image": "aW1hZ2U="}]}', "is not a string"),
        (b'{"image": "not base64!"}', "not valid base64"),
        (b'{"image": "aW1hZ"}', "not valid base64"),
        (b'{"image": "aW1hZ2U=aW1hZ2U="}', "not valid base64"),
        (b'{"image": "data:image/svg+xml,%3Csvg%3E"}', "not valid base64"),
        ('{"image": "für"}'.encode(), "not valid base64"),
        (b'{"image": ""}', "image is empty"),
    ],
)
def test_json_without_an_image_is_refused_with_the_reason(body: bytes, says: str) -> None:
    with pytest.raises(BadUpload, match=says):
        read(body, "application/json")


def test_an_empty_body_is_refused() -> None:
    with pytest.raises(BadUpload, match="the body is empty"):
        read(b"", "image/png")


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "multipart/mixed; boundary=b", "video/mp4", "x"]
)
def test_another_content_type_is_refused_by_its_name(content_type: str) -> None:
    with pytest.raises(UnsupportedBody, match=content_type.split(";", maxsplit=1)[0]):
        read(b"1", content_type)


def test_a_file_of_megabytes_is_read_completely() -> None:
    data = bytes(range(256)) * 12_000
    (upload,) = read(form(part(data, FILE.format("a"))), MULTIPART, pieces=40)
    assert upload.data == data


# Text that looks like the boundary or a piece of it, and anything else.
pieces = st.sampled_from([b"\r\n", b"--", b"--b", b"\r\n--", b"\r\n-", b"\r", b"\n", b"b", b""])
contents = (
    st.lists(pieces | st.binary(max_size=20), max_size=8)
    .map(b"".join)
    .filter(lambda data: data != b"" and b"\r\n--b" not in b"\r\n" + data + b"\r\n")
)
names = st.text(st.characters(codec="utf-8", exclude_characters='"\\\r\n\0;'), min_size=1, max_size=10)


@given(st.lists(st.tuples(names, contents), min_size=1, max_size=4))
def test_what_was_sent_is_what_is_found(files: list[tuple[str, bytes]]) -> None:
    body = form(*(part(data, FILE.format(name)) for name, data in files))
    assert read(body, MULTIPART) == [Upload(name, data) for name, data in files]


@given(st.binary(max_size=200) | st.lists(pieces | st.binary(max_size=8), max_size=30).map(b"".join))
def test_any_body_gives_uploads_or_an_error_of_the_client(body: bytes) -> None:
    for data in (body, b"--b\r\n" + body, form(part(b"1", FILE.format("a")))[:-7] + body):
        try:
            assert read(data, MULTIPART)
        except (BadUpload, TooManyFiles):
            continue


def test_text_after_the_last_boundary_is_ignored() -> None:
    body = form(part(b"1", FILE.format("a")), part(b"2", FILE.format("b"))) + b"end\r\n"
    assert read(body, MULTIPART) == [Upload("a", b"1"), Upload("b", b"2")]


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        (b'content-disposition:form-data;name="file";filename="a.png"', "a.png"),
        (b"Content-Disposition: form-data; name=file; filename=a.png", "a.png"),
        (b'Content-Disposition: form-data; filename="a.png"; name="file"', "a.png"),
        (b'Content-Disposition: form-data; name="file"; filename="a\\"b.png"', 'a"b.png'),
        (b'Content-Disposition: form-data; name="file"; filename="C:\\images\\a.png"', "a.png"),
        ('Content-Disposition: form-data; name="file"; filename="Katze \u00e4.png"'.encode(), "Katze \u00e4.png"),
        (b'Content-Type: image/png\r\nContent-Disposition: form-data; name="file"; filename="a"', "a"),
    ],
)
def test_the_filename_is_read_as_clients_write_it(disposition: bytes, filename: str) -> None:
    assert read(b"--b\r\n" + disposition + b"\r\n\r\n1\r\n--b--", MULTIPART) == [Upload(filename, b"1")]


@pytest.mark.parametrize("boundary", ["", "; boundary=", "; boundary=" + "x" * 71], ids=["none", "empty", "overlong"])
def test_a_boundary_is_needed_and_limited(boundary: str) -> None:
    with pytest.raises(BadUpload, match="boundary of 1 to 70"):
        read(b"", "multipart/form-data" + boundary)


@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\n" + b"x: y\r\n" * 2000 + b"\r\n1\r\n--b--",
        b"--b\r\nX: " + b"y" * 100_000 + b"\r\n\r\n1\r\n--b--",
        b"--b\r\n\r\n1\r\n--b--",
        b"--b",
        b"",
    ],
    ids=["many headers", "a long header", "no headers", "no end", "nothing"],
)
def test_a_malformed_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadUpload, match="malformed"):
        read(body, MULTIPART)


@pytest.mark.parametrize(
    "hostile",
    [
        part(b"\r\n--bx" * 3_000_000, FILE.format("a")),
        b"\n--bx" * 3_000_000,
        b"--b" + b" " * 20_000_000 + b"\r\n",
        part(b"", FILE.format("a")) + b"--b" + b"\t " * 10_000_000,
        b"--b\r\n" + b"x" * 20_000_000,
        b"\n--" * 6_000_000,
        b"--b\r\nContent-Disposition: " + b';a="' * 5_000_000,
        (b'--b\r\nContent-Disposition: form-data; name="a"' + b";" * 8_000 + b"\r\n\r\n\r\n") * 130,
        part(b"=\n" * 10_000_000, FILE.format("a") + "\r\nContent-Transfer-Encoding: quoted-printable"),
        part(b"\n " * 10_000_000, FILE.format("a") + "\r\nContent-Transfer-Encoding: base64"),
    ],
    ids=[
        "lines that begin like the boundary",
        "the same before the first one",
        "padding of the first boundary",
        "padding of another boundary",
        "a header without an end",
        "dashes",
        "parameters",
        "empty parameters of many parts",
        "quoted-printable",
        "base64 of spaces",
    ],
)
def test_a_hostile_form_does_not_keep_the_service_busy(hostile: bytes) -> None:
    began = time.process_time()
    with contextlib.suppress(BadUpload, TooManyFiles):
        read(form(hostile), MULTIPART)
    assert time.process_time() - began < 1.0  # the first took 20 s with a parser that goes byte by byte
