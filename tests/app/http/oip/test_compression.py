import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.oip.compression import deflate, encoding_of, inflate
from app.http.problems import BodyTooLarge, InvalidInference, UnsupportedBody

COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
}


@given(st.binary(max_size=200), st.sampled_from(sorted(COMPRESS)))
def test_a_body_survives_compression(body: bytes, encoding: str) -> None:
    assert inflate(COMPRESS[encoding](body), encoding, len(body)) == body


@given(st.binary(max_size=200))
def test_a_response_is_read_by_the_standard_library(body: bytes) -> None:
    assert gzip.decompress(deflate(body, "gzip")) == body
    assert zlib.decompress(deflate(body, "deflate")) == body


@pytest.mark.parametrize("encoding", sorted(COMPRESS))
def test_a_body_above_the_limit_is_refused(encoding: str) -> None:
    with pytest.raises(BodyTooLarge, match="more than 99 bytes after decompression"):
        inflate(COMPRESS[encoding](bytes(100)), encoding, 99)


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(100_000_000), 9)
    assert len(bomb) < 200_000
    tracemalloc.start()
    with pytest.raises(BodyTooLarge):
        inflate(bomb, "gzip", 1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_500_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda body: body[:-1],
        lambda body: body[: len(body) // 2],
        lambda body: body + b"x",
        lambda body: body[:-4] + b"abcd",
        lambda body: b"",
        lambda body: b"not compressed",
    ],
    ids=["truncated", "half", "more data", "checksum", "empty", "plain"],
)
def test_a_damaged_body_is_refused(encoding: str, damage: Callable[[bytes], bytes]) -> None:
    with pytest.raises(InvalidInference, match="compress it again"):
        inflate(damage(COMPRESS[encoding](b"some data" * 9)), encoding, 1000)


@given(st.binary(max_size=100), st.sampled_from(sorted(COMPRESS)))
def test_any_bytes_are_inflated_or_refused(body: bytes, encoding: str) -> None:
    with suppress(InvalidInference, BodyTooLarge):
        assert len(inflate(body, encoding, 50)) <= 50


@pytest.mark.parametrize(
    ("header", "encoding"),
    [
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        (" GZip ", "gzip"),
        ("deflate", "deflate"),
        ("x-gzip", "x-gzip"),
    ],
)
def test_the_encoding_of_a_request(header: str, encoding: str | None) -> None:
    assert encoding_of(header) == encoding


@pytest.mark.parametrize("header", ["br", "zstd", "gzip, gzip", "nonsense"])
def test_another_encoding_is_refused(header: str) -> None:
    with pytest.raises(UnsupportedBody, match="use gzip or deflate"):
        encoding_of(header)
