"""Which responses are compressed."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.compression import accepted, deflate
from tests.app.fakes import image_file
from tests.app.running import Running


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", None),
        ("identity", None),
        ("*", None),
        ("br", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("br, deflate, GZIP", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.0 , deflate; q=0.5", "deflate"),
        ("gzip;q=0.000", None),
        ("gzip;q=1.0", "gzip"),
        ("x-gzip", None),
    ],
)
def test_the_encoding_of_a_response(header: str, encoding: str | None) -> None:
    assert accepted(header) == encoding


@given(st.binary(max_size=200))
def test_a_response_is_read_by_the_standard_library(body: bytes) -> None:
    assert gzip.decompress(deflate(body, "gzip")) == body
    assert zlib.decompress(deflate(body, "deflate")) == body


@pytest.mark.parametrize("header", ["gzip;q=0", "deflate, gzip; q=0.0", "x-gzip", "identity"])
def test_a_client_that_refuses_gzip_gets_none(running: Running, header: str) -> None:
    headers = {"Accept-Encoding": header}
    card = running.client.get("/model", headers=headers)
    results = running.upload(*[("a", image_file())] * 8, headers=headers)
    script = running.client.get("/static/page.js", headers=headers)
    for response in (card, results, script):
        assert response.status_code == 200
        assert len(response.content) > 2_000
        assert "Content-Encoding" not in response.headers
        assert set(response.headers["Vary"].split(", ")) == {"Accept-Encoding"}
    compressed = running.client.get("/static/page.js", headers={"Accept-Encoding": "gzip;q=0.5"})
    assert compressed.headers["Content-Encoding"] == "gzip"
    assert compressed.headers["ETag"] == f'{script.headers["ETag"][:-1]}-gzip"', "each representation has its own"
