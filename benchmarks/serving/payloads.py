"""Request bodies: small and large generated images, as multipart and as raw bodies."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Encoding = Literal["multipart", "raw"]

PHOTO_SIZE = (4000, 3000)
LARGEST_PHOTO_SIZE = (8000, 6000)
_SMALL = 32
_SMALL_IMAGES = 16
_BOUNDARY = "tenfold-serving"


@dataclass(frozen=True, slots=True)
class Body:
    """The body of a request."""

    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Payload:
    """Image files of one kind, sent in rotation.

    Attributes:
        name: name in the table.
        mime: media type of the files.
        files: one or more files.
    """

    name: str
    mime: str
    files: Sequence[bytes]

    def bodies(self, encoding: Encoding) -> list[Body]:
        """One request body per file."""
        return [body_of(file, self.mime, encoding) for file in self.files]


def body_of(file: bytes, mime: str, encoding: Encoding) -> Body:
    """A body with one image file: as the only part, named `file`, or as the whole body."""
    if encoding == "raw":
        return Body(mime, file)
    head = (
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image"\r\n'
        f"Content-Type: {mime}\r\n\r\n"
    )
    return Body(
        f"multipart/form-data; boundary={_BOUNDARY}", head.encode() + file + f"\r\n--{_BOUNDARY}--\r\n".encode()
    )


def small_pngs(count: int = _SMALL_IMAGES, seed: int = 0) -> Payload:
    """Smooth images of 32 x 32 with a little noise, so that their PNGs have the size of those of CIFAR-10 images."""
    rng = np.random.default_rng(seed)
    return Payload("png", "image/png", [png_of(_smooth(rng)) for _ in range(count)])


def large_jpeg(seed: int = 0, size: tuple[int, int] = PHOTO_SIZE) -> Payload:
    """A JPEG of 12 megapixels and a few megabytes, like a phone's, with blurs, shapes, texture and noise."""
    rng = np.random.default_rng(seed)
    image = _noise(rng, (8, 6)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = rng.integers(0, size[0]), rng.integers(0, size[1])
        width, height = rng.integers(size[0] // 40, size[0] * 9 // 40, 2)
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((int(x), int(y), int(x + width), int(y + height)), fill=tuple(rng.integers(0, 256, 3).tolist()))
    for scale, share in ((100, 0.3), (10, 0.15), (1, 0.1)):
        texture = _noise(rng, (size[0] // scale, size[1] // scale))
        image = Image.blend(image, texture.resize(size, Image.Resampling.BICUBIC), share)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return Payload("jpeg", "image/jpeg", [file.getvalue()])


def png_of(pixels: NDArray[np.uint8]) -> bytes:
    """uint8[H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _smooth(rng: np.random.Generator) -> NDArray[np.uint8]:
    coarse, fine = (
        np.asarray(_noise(rng, (side, side)).resize((_SMALL, _SMALL), Image.Resampling.BICUBIC), np.float64)
        for side in (4, 12)
    )
    pixels = 0.75 * coarse + 0.25 * fine + rng.normal(0, 4, (_SMALL, _SMALL, 3))
    return pixels.clip(0, 255).round().astype(np.uint8)


def _noise(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
