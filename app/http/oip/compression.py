"""Compressed bodies of the Open Inference Protocol: gzip and deflate, in requests and responses."""

import gzip
import zlib

from app.http.problems import BodyTooLarge, InvalidInference, UnsupportedBody

# Window sizes of zlib for the formats. "deflate" in HTTP is the zlib format (RFC 9110, 8.4.1.2).
_FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}

_LEVEL = 1


def encoding_of(header: str) -> str | None:
    """The compression of a request body.

    Args:
        header: Content-Encoding; empty without this header.

    Returns:
        An encoding for `inflate`; None if the body is not compressed.

    Raises:
        UnsupportedBody: another encoding, or several.
    """
    name = header.strip().lower()
    if name in ("", "identity"):
        return None
    if name not in _FORMATS:
        raise UnsupportedBody(f"a body with Content-Encoding {name!r} is not accepted: use gzip or deflate")
    return name


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """Decompress a body.

    Args:
        body: compressed.
        encoding: from `encoding_of`.
        limit: largest number of bytes of the result. No more memory is used for it.

    Raises:
        BodyTooLarge: the result has more bytes.
        InvalidInference: the body is damaged, truncated, or followed by other data.
    """
    stream = zlib.decompressobj(_FORMATS[encoding])
    try:
        data = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInference(f"the body is not {encoding}: compress it again") from error
    if len(data) > limit:
        raise BodyTooLarge(
            f"the request has more than {limit:,} bytes after decompression: send fewer or smaller images"
        )
    if not stream.eof or stream.unused_data:
        raise InvalidInference(f"the body is not exactly one {encoding} stream: compress it again")
    return data


def deflate(body: bytes, encoding: str) -> bytes:
    """Compress a response body with "gzip" or "deflate", quickly rather than well."""
    return gzip.compress(body, _LEVEL, mtime=0) if encoding == "gzip" else zlib.compress(body, _LEVEL)
