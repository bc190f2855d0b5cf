"""Complete HTTP requests, generated once, each with the statuses that are expected for it."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Statuses that an overloaded service may give to any request.
OVERLOADED = frozenset({503, 504})

_BOUNDARY = "tenfold-soak"
_TARGET = "/predict?top_k=10"  # all classes, so that predictions can be compared completely
_BYTES_OF_TOO_LARGE = 65536


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes:
        kind: its name in the report.
        request: head and body.
        statuses: expected statuses, in addition to those of an overloaded service.
        complete: whether the body has the length in the head. If not, the connection cannot be reused.
    """

    kind: str
    request: bytes
    statuses: frozenset[int]
    complete: bool = True

    @property
    def good(self) -> bool:
        """Whether it must be classified."""
        return self.statuses == {200}


def good_samples(images: int = 48, seed: int = 0) -> list[Sample]:
    """Requests that must be classified: mostly small images, some photos, and some requests with several images."""
    rng = np.random.default_rng(seed)
    small = [_png(rng) for _ in range(images)]
    photos = [_photo(rng) for _ in range(max(1, images // 8))]
    samples = [_raw("png", data, "image/png") for data in small]
    samples += [_raw("raw bytes", data, "application/octet-stream") for data in small[::4]]
    samples += [_raw("photo", data, "image/jpeg") for data in photos]
    for start in range(0, images, 8):
        several = [*small[start : start + 3], photos[start // 8 % len(photos)]]
        samples.append(_multipart("several", several, 200))
    # The other images of the request are classified in spite of the damaged one.
    samples.append(_multipart("several, one damaged", [small[0], small[1][:60], small[2]], 200))
    return samples


def bad_samples(max_body_bytes: int, max_pixels: int, seed: int = 1) -> list[Sample]:
    """Requests that must be rejected, one of each kind.

    Args:
        max_body_bytes: the limit of the service.
        max_pixels: the limit of the service.
        seed: seed of the truncated image.
    """
    image = _png(np.random.default_rng(seed))
    side = int(max_pixels**0.5) + 1
    return [
        _raw("truncated", image[: len(image) // 2], "image/png", 422),
        _raw("text as an image", b"This is plain text. " * 50, "image/png", 415),
        _raw("text", b"This is plain text. " * 50, "text/plain", 415),
        _raw("empty", b"", "image/png", 400),
        _raw("too many pixels", _png_head(side), "image/png", 413),
        Sample(
            "too large",
            _head("image/png", max_body_bytes + 1) + bytes(_BYTES_OF_TOO_LARGE),
            frozenset({413}),
            complete=False,
        ),
    ]


def get(path: str) -> bytes:
    """A request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: soak\r\n\r\n".encode()


def _head(content_type: str, length: int) -> bytes:
    return (
        f"POST {_TARGET} HTTP/1.1\r\nHost: soak\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _raw(kind: str, body: bytes, content_type: str, status: int = 200) -> Sample:
    return Sample(kind, _head(content_type, len(body)) + body, frozenset({status}))


def _multipart(kind: str, files: list[bytes], status: int) -> Sample:
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{number}"\r\n\r\n'.encode() + file
        for number, file in enumerate(files)
    ]
    body = b"\r\n".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])
    return Sample(kind, _head(f"multipart/form-data; boundary={_BOUNDARY}", len(body)) + body, frozenset({status}))


def _png(rng: np.random.Generator) -> bytes:
    """A random 32 x 32 image of coarse squares and fine noise."""
    squares = rng.integers(0, 256, (4, 4, 3)).repeat(8, axis=0).repeat(8, axis=1)
    return _encoded(squares + rng.integers(-20, 21, (32, 32, 3)), "PNG")


def _photo(rng: np.random.Generator) -> bytes:
    """A JPEG of 640 x 480 with noise at every scale, like a photo."""
    pixels = np.full((480, 640, 3), 128.0)
    for scale in (4, 16, 32, 160):
        noise = rng.normal(0, 24, (480 // scale, 640 // scale, 3))
        pixels += noise.repeat(scale, axis=0).repeat(scale, axis=1)
    return _encoded(pixels, "JPEG")


def _encoded(pixels: np.ndarray[tuple[int, ...], np.dtype[np.integer | np.floating]], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def _png_head(side: int) -> bytes:
    """A PNG whose header gives side x side pixels and that contains none."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
