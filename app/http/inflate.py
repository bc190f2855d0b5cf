"""Request bodies with Content-Encoding gzip or deflate."""

import asyncio
import zlib

from starlette.types import Message, Receive

from app.http.problems import BadUpload, UnsupportedBody

# Window sizes of zlib for the formats. "deflate" in HTTP is the zlib format (RFC 9110, 8.4.1.2).
_FORMATS = {"gzip": 31, "x-gzip": 31, "deflate": 15}

# Bytes of a decompressed piece. One takes the event loop about a millisecond, and then other requests have their turn.
_PIECE = 250_000


def inflated(receive: Receive, encoding: str) -> Receive:
    """Decompress the body of a request piece by piece.

    Args:
        receive: gives the body as it was sent.
        encoding: Content-Encoding.

    Returns:
        A function that gives the decompressed body, whose size it does not limit. It raises BadUpload if the body is
        damaged, truncated or followed by other data, and UnsupportedBody for another encoding or several.
    """
    name = encoding.strip().lower()
    if name == "identity":
        return receive
    stream = zlib.decompressobj(_FORMATS.get(name, 15))
    rest, more, pending, complete = b"", True, False, False

    async def receive_inflated() -> Message:
        nonlocal rest, more, pending, complete
        if name not in _FORMATS:
            raise UnsupportedBody(f"a body with Content-Encoding {name[:50]!r} is not accepted: use gzip or deflate")
        if complete:
            return await receive()
        if pending:
            await asyncio.sleep(0)
        else:
            message = await receive()
            if message["type"] != "http.request":
                return message
            rest, more = message.get("body", b""), message.get("more_body", False)
        try:
            data = stream.decompress(rest, _PIECE)
        except zlib.error as error:
            raise BadUpload(f"the body is not {name}: compress it again") from error
        rest = stream.unconsumed_tail
        pending = not stream.eof and (bool(rest) or len(data) == _PIECE)
        complete = not more and not pending
        if stream.unused_data or (complete and not stream.eof):
            raise BadUpload(f"the body is not exactly one {name} stream: compress it again")
        return {"type": "http.request", "body": data, "more_body": not complete}

    return receive_inflated
