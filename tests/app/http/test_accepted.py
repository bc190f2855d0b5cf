"""Requests as clients of many kinds send them, over a real port: each gets the result of its image."""

import base64
import binascii
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest

from app.http.problems import TABLE, BadUpload
from tests.app.fakes import image_file
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Running, eventually, serving

PNG = image_file(1)
# With "+" and "/" in base64, so that the alphabets differ.
BASE64 = base64.b64encode(PNG).decode()
URL_SAFE = base64.urlsafe_b64encode(PNG).decode()
WRAPPED = base64.encodebytes(PNG).decode()
DISPOSITION = 'Content-Disposition: form-data; name="file"; filename="a.png"'
UNUSED = 'Content-Disposition: form-data; name="file"; filename=""'
MULTIPART = {"Content-Type": "multipart/form-data; boundary=b"}
JSON = {"Content-Type": "application/json"}
BOM = b"\xef\xbb\xbf"
GZIP = {"Content-Encoding": "gzip"}


def part(head: str, data: bytes = PNG) -> bytes:
    """A part of a form."""
    return f"--b\r\n{head}\r\n\r\n".encode() + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    """A form of these parts."""
    return b"".join(parts) + b"--b--\r\n"


def in_json(image: object) -> bytes:
    return json.dumps({"image": image}).encode()


ONE = form(part(DISPOSITION))
Case = tuple[Mapping[str, str], bytes, str | None]

# Name -> headers, body, and the filename of the result.
ACCEPTED: dict[str, Case] = {
    "image/jpg": ({"Content-Type": "image/jpg"}, PNG, None),
    "S3's type": ({"Content-Type": "binary/octet-stream"}, PNG, None),
    "octet-stream": ({"Content-Type": "application/octet-stream"}, PNG, None),
    "no type": ({}, PNG, None),
    "curl --data-binary": ({"Content-Type": "application/x-www-form-urlencoded"}, PNG, None),
    "curl -d of JSON": ({"Content-Type": "application/x-www-form-urlencoded"}, in_json(BASE64), None),
    "JSON without a type": ({}, in_json(BASE64), None),
    "text/json": ({"Content-Type": "text/json"}, in_json(BASE64), None),
    "a JSON type of a vendor": ({"Content-Type": "application/vnd.api+json"}, in_json(BASE64), None),
    "JSON with a byte order mark": (JSON, BOM + in_json(BASE64), None),
    "base64 with line breaks": (JSON, in_json(WRAPPED), None),
    "base64 with CRLF": (JSON, in_json(WRAPPED.replace("\n", "\r\n")), None),
    "base64 without padding": (JSON, in_json(BASE64.rstrip("=")), None),
    "URL-safe base64": (JSON, in_json(URL_SAFE), None),
    "URL-safe base64 without padding": (JSON, in_json(URL_SAFE.rstrip("=")), None),
    "a data URL": (JSON, in_json(f"data:image/png;base64,{BASE64}"), None),
    "a data URL in capitals": (JSON, in_json(f"DATA:image/png;name=a.png;BASE64,{BASE64}"), None),
    "a data URL with percent-encoding": (JSON, in_json(f"data:;base64,{quote(BASE64, safe='')}"), None),
    "gzip of the image": (GZIP, gzip.compress(PNG), None),
    "x-gzip in capitals": ({"Content-Encoding": "X-GZIP"}, gzip.compress(PNG), None),
    "deflate of the image": ({"Content-Encoding": "deflate"}, zlib.compress(PNG), None),
    "gzip of JSON": (JSON | GZIP, gzip.compress(in_json(BASE64)), None),
    "gzip of a form": (MULTIPART | GZIP, gzip.compress(ONE), "a.png"),
    "identity": ({"Content-Encoding": "identity"}, PNG, None),
    "a quoted boundary in capitals": ({"Content-Type": 'Multipart/Form-Data; charset=x; BOUNDARY = "b"'}, ONE, "a.png"),
    "filename* only": (
        MULTIPART,
        form(part("Content-Disposition: form-data; name=\"file\"; filename*=UTF-8''caf%C3%A9.png")),
        "café.png",
    ),
    "filename* after filename": (
        MULTIPART,
        form(part("Content-Disposition: form-data; name=file; filename=caf_.png; filename*=utf-8''caf%C3%A9.png")),
        "café.png",
    ),
    "filename* in Latin-1": (
        MULTIPART,
        form(part("content-disposition: form-data; name=file; FILENAME*=iso-8859-1'en'caf%E9.png")),
        "café.png",
    ),
    "no filename, but an image type": (
        MULTIPART,
        form(part('Content-Disposition: form-data; name="file"\r\nContent-Type: image/png')),
        None,
    ),
    "no filename, but the type of a file": (
        MULTIPART,
        form(part('Content-Type: application/octet-stream\r\nContent-Disposition: form-data; name="file"')),
        None,
    ),
    **{
        f"transfer encoding {encoding}": (
            MULTIPART,
            form(part(f"{DISPOSITION}\r\nContent-Transfer-Encoding: {encoding}", data)),
            "a.png",
        )
        for encoding, data in {
            "base64": BASE64.encode(),
            "BASE64": WRAPPED.replace("\n", "\r\n").encode(),
            "quoted-printable": binascii.b2a_qp(PNG, istext=False),
            "binary": PNG,
            "8bit": PNG,
            "7bit": PNG,
        }.items()
    },
    "folded headers": (
        MULTIPART,
        form(part('Content-Disposition: form-data;\r\n name="file";\r\n\tfilename="a.png"')),
        "a.png",
    ),
    "a preamble": (MULTIPART, b"This is a message\r\n--bb\r\nin MIME.\r\n" + ONE, "a.png"),
    "a preamble of a line break": (MULTIPART, b"\r\n" + ONE, "a.png"),
    "an epilogue": (MULTIPART, ONE + b"The end\r\n--b\r\n", "a.png"),
    "no line break at the end": (MULTIPART, ONE.rstrip(), "a.png"),
    "spaces after the boundary": (MULTIPART, ONE.replace(b"--b\r\n", b"--b \t\r\n"), "a.png"),
    "lines that end in LF": (
        MULTIPART,
        f"preamble\n--b\n{DISPOSITION}\nContent-Type: image/png\n\n".encode() + PNG + b"\n--b--\n",
        "a.png",
    ),
    "an unused file input": (
        MULTIPART,
        form(
            part(f'{UNUSED}\r\nContent-Type: application/octet-stream', b""),
            part(DISPOSITION),
            part(UNUSED, b""),
        ),
        "a.png",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def expected(running: Running) -> Mapping[str, Any]:
    """The result of the image, without its filename."""
    (result,) = running.post(PNG).json()["results"]
    return {name: value for name, value in result.items() if name != "filename"}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_request_gets_the_result_of_its_image(running: Running, expected: Mapping[str, Any], case: str) -> None:
    headers, body, filename = ACCEPTED[case]
    response = running.client.post("/predict", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["results"] == [{"filename": filename, **expected}]


@pytest.mark.parametrize(
    "case", ["gzip of a form", "an unused file input", "filename* only", "transfer encoding base64"]
)
def test_an_image_is_explained_as_well(running: Running, case: str) -> None:
    headers, body, filename = ACCEPTED[case]
    response = running.client.post("/explain", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["result"]["filename"] == filename


def file(name: str, data: bytes, more: str = "") -> bytes:
    return part(f'Content-Disposition: form-data; name="file"; filename="{name}"{more}', data)


# Name -> content type, body, and the detail of the problem of each result; None for an image.
SEVERAL: dict[str, tuple[Mapping[str, str], bytes, list[str | None]]] = {
    "an empty file": (
        MULTIPART,
        form(file("a", PNG), file("b", b""), file("c", PNG)),
        [None, "the file 'b' is empty: send an image", None],
    ),
    "an empty file and an unused input": (
        MULTIPART,
        form(file("", b""), file("b", b""), file("c", PNG)),
        ["the file 'b' is empty: send an image", None],
    ),
    "a file in damaged base64": (
        MULTIPART,
        form(file("a", b"not base64!", "\r\nContent-Transfer-Encoding: base64"), file("b", PNG)),
        ["the file 'a' is not valid base64: encode its bytes, or send them as they are", None],
    ),
    "damaged base64 in JSON": (
        JSON,
        json.dumps({"instances": [BASE64, "not base64!", {"b64": BASE64}, {"b64": ""}, None, 5]}).encode(),
        [
            None,
            "instances[1] is not valid base64: encode the bytes of the file",
            None,
            "instances[3] is empty: send an image",
            *(
                f'instances[{index}] is not a string: send {{"image": "<base64>"}} or '
                '{"instances": [{"b64": "<base64>"}]}'
                for index in (4, 5)
            ),
        ],
    ),
    "only bad ones": (
        MULTIPART,
        form(file("a", b""), file("b", b"")),
        ["the file 'a' is empty: send an image", "the file 'b' is empty: send an image"],
    ),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_a_bad_image_does_not_affect_the_others(running: Running, expected: Mapping[str, Any], case: str) -> None:
    headers, body, problems = SEVERAL[case]
    response = running.client.post("/predict", content=body, headers=headers)
    assert response.status_code == 200, response.text
    for result, problem in zip(response.json()["results"], problems, strict=True):
        del result["filename"]
        if problem is None:
            assert result == expected
        else:
            found = result["problem"]
            assert (found["status"], found["type"], found["detail"]) == (400, "urn:tenfold:bad-upload", problem)
            assert found["title"] == TABLE[BadUpload].title
            assert found["instance"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize("path", ["/predict", "/explain"])
@pytest.mark.parametrize(
    ("headers", "body", "says"),
    [
        (MULTIPART, form(file("a", b"")), "the file 'a' is empty"),
        (MULTIPART, form(file("", b"")), "The upload has 'file (no file was chosen)'"),
        (MULTIPART, form(file("", b""), file("a", b"")), "the file 'a' is empty"),
        (JSON, b'{"instances": ["not base64!"]}', "instances[0] is not valid base64"),
        (GZIP, b"no gzip", "the body is not gzip: compress it again"),
        (GZIP, gzip.compress(PNG)[:-1], "the body is not exactly one gzip stream"),
        (GZIP, gzip.compress(b"", mtime=0), "the body is empty"),
    ],
)
def test_one_bad_image_alone_is_the_error_of_the_request(
    running: Running, path: str, headers: Mapping[str, str], body: bytes, says: str
) -> None:
    problem = is_a_problem(running.client.post(path, content=body, headers=headers), 400)
    assert problem["type"] == "urn:tenfold:bad-upload"
    assert says in problem["detail"]


@pytest.mark.parametrize(
    ("headers", "body", "says"),
    [
        ({"Content-Encoding": "br"}, PNG, "a body with Content-Encoding 'br' is not accepted: use gzip or deflate"),
        ({"Content-Encoding": "gzip, gzip"}, PNG, "'gzip, gzip' is not accepted"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, b"file=cat", "x-www-form-urlencoded is not accepted"),
    ],
)
def test_what_is_not_accepted_is_named(running: Running, headers: Mapping[str, str], body: bytes, says: str) -> None:
    problem = is_a_problem(running.client.post("/predict", content=body, headers=headers), 415)
    assert problem["type"] == "urn:tenfold:unsupported-body"
    assert says in problem["detail"]


def bomb(pieces: int) -> Iterator[bytes]:
    """A gzip stream of a megabyte of zeros for each piece."""
    stream = zlib.compressobj(9, wbits=31)
    for _ in range(pieces):
        yield stream.compress(bytes(1_000_000)) + stream.flush(zlib.Z_SYNC_FLUSH)
    yield stream.flush()


@pytest.mark.parametrize("path", ["/predict", "/explain", "/v2/models/fake-net/infer"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_decompressed_body_has_the_limit_of_a_body(path: str, chunked: bool) -> None:
    content = bomb(200) if chunked else b"".join(bomb(200))
    with serving(max_body_bytes=3_000_000) as service:
        response = service.client.post(path, content=content, headers=GZIP)
        assert response.status_code == 413, response.text
        assert "more than 3,000,000 bytes after decompression" in response.text
        assert service.client.post("/predict", content=gzip.compress(PNG), headers=GZIP).status_code == 200
        held = service.service.limits.held_bytes
        eventually(lambda: not any(held.used.values()), "its bytes are released")


def test_a_compressed_upload_that_does_not_end_is_refused_at_its_deadline() -> None:
    body = gzip.compress(bytes(100_000))
    with serving(timeout=0.3) as service, service.connect() as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body[:-10])
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")
        assert not any(service.service.limits.held_bytes.used.values())
