"""Request bodies with Content-Encoding. tests/app/http/test_accepted.py tests them over a real port."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from app.http.inflate import inflated
from app.http.problems import BadUpload, UnsupportedBody

COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
}


def inflate(body: bytes, encoding: str, *, piece: int = 1 << 20, most: int = 10**9) -> bytes:
    """The decompressed body, which arrives in pieces and is read until it has `most` bytes."""
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)] or [b""]
    messages = iter(
        [{"type": "http.request", "body": part, "more_body": True} for part in pieces]
        + [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
    )

    async def receive() -> Message:
        return next(messages)

    async def read() -> bytes:
        receive_inflated = inflated(receive, encoding)
        found = bytearray()
        while len(found) < most:
            message = await receive_inflated()
            found += message["body"]
            if not message["more_body"]:
                assert (await receive_inflated())["type"] == "http.disconnect"
                break
        return bytes(found)

    return asyncio.run(read())


@given(st.binary(max_size=200), st.sampled_from(sorted(COMPRESS)), st.integers(1, 300))
def test_a_body_is_decompressed_however_it_arrives(body: bytes, encoding: str, piece: int) -> None:
    assert inflate(COMPRESS[encoding](body), encoding, piece=piece) == body


@pytest.mark.parametrize("size", [249_999, 250_000, 250_001, 500_000, 3_000_000])
def test_a_large_body_is_complete(size: int) -> None:
    for body in (bytes(size), bytes(range(256)) * (size // 256) + bytes(size % 256)):
        assert inflate(gzip.compress(body), "gzip") == body


def test_a_bomb_takes_little_memory() -> None:
    bomb = gzip.compress(bytes(100_000_000), 9)
    assert len(bomb) < 200_000
    tracemalloc.start()
    inflate(bomb, "gzip", most=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


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
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_damaged_body_is_refused(encoding: str, damage: Callable[[bytes], bytes], piece: int) -> None:
    with pytest.raises(BadUpload, match="compress it again"):
        inflate(damage(COMPRESS[encoding](b"some data" * 9)), encoding, piece=piece)


@given(st.binary(max_size=100), st.sampled_from(sorted(COMPRESS)))
def test_any_bytes_are_inflated_or_refused(body: bytes, encoding: str) -> None:
    with suppress(BadUpload):
        inflate(body, encoding)


@pytest.mark.parametrize("encoding", ["identity", " Identity "])
def test_a_plain_body_is_not_changed(encoding: str) -> None:
    assert inflate(b"plain", encoding) == b"plain"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "nonsense"])
def test_another_encoding_is_refused(encoding: str) -> None:
    with pytest.raises(UnsupportedBody, match="use gzip or deflate"):
        inflate(b"", encoding)
