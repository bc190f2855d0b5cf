"""Whatever the bytes, preprocess() gives an image of the documented shape or one of the image errors."""

import io
import re
import time

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.card import InputSpec
from model.decode import FORMATS
from model.errors import ImageError
from model.image import PreprocessedImage, preprocess
from model.views import MAX_VIEWS
from tests.hostile import announcing, corpus

large_examples = settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

SPECS = [
    InputSpec(resize=resize, crop=crop, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    for resize, crop in ((32, 32), (40, 33), (8, 7))
]
MAX_PIXELS = 200_000

# Pillow's modes -> the formats that store them.
STORED = {
    "1": ("PNG", "BMP", "TIFF"),
    "L": ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"),
    "P": ("PNG", "GIF", "BMP", "TIFF"),
    "RGB": ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"),
    "RGBA": ("PNG", "WEBP", "TIFF", "AVIF"),
    "LA": ("PNG", "TIFF"),
    "CMYK": ("JPEG", "TIFF"),
    "I;16": ("PNG", "TIFF"),
    "I": ("TIFF",),
    "F": ("TIFF",),
}
STARTS = [
    b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"GIF89a", b"BM", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0", b"RIFF\xff\0\0\0WEBPVP8 ", b"RIFF\xff\0\0\0WEBPVP8X", b"\0\0\0\x1cftypavif",
]  # fmt: skip


def outcome(data: bytes, spec: InputSpec, views: int) -> PreprocessedImage | ImageError:
    """What preprocess() makes of a file; no other exception passes."""
    image: PreprocessedImage | ImageError
    began = time.thread_time()
    try:
        image = preprocess(data, spec, max_pixels=MAX_PIXELS, views=views)
    except ImageError as error:
        image = error
    assert time.thread_time() - began < 2, "it hangs"
    if isinstance(image, ImageError):
        assert type(image) is not ImageError
        assert re.search(": (save|upload|convert) ", str(image)), "the message says what to do"
        return image
    assert image.pixels.dtype == np.uint8
    assert image.pixels.shape[1:] == (spec.crop, spec.crop, 3)
    assert len(image.pixels) in {1, min(views, 2), views}
    assert 0 < image.width * image.height <= MAX_PIXELS
    assert len(image.boxes) == len(image.pixels)
    for left, top, right, bottom in image.boxes:
        assert 0 <= left < right <= image.width
        assert 0 <= top < bottom <= image.height
    return image


# Of the corpus, those that are quick to mutate.
FILES = {sample.name: sample.data for sample in corpus() if 0 < len(sample.data) < 12_000}


@large_examples
@given(
    st.one_of(st.binary(max_size=300), st.builds(bytes.__add__, st.sampled_from(STARTS), st.binary(max_size=300))),
    st.sampled_from(SPECS),
    st.integers(1, MAX_VIEWS),
)
def test_arbitrary_bytes_are_an_image_or_an_image_error(data: bytes, spec: InputSpec, views: int) -> None:
    outcome(data, spec, views)


@settings(large_examples, max_examples=400)
@given(st.data(), st.sampled_from(SPECS), st.integers(1, MAX_VIEWS))
def test_mutated_files_are_an_image_or_an_image_error(data: st.DataObject, spec: InputSpec, views: int) -> None:
    changed = bytearray(FILES[data.draw(st.sampled_from(sorted(FILES)))])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(changed)) | st.integers(0, min(len(changed), 64)))
        changed[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    outcome(bytes(changed), spec, views)


@large_examples
@given(
    st.sampled_from([(mode, kind) for mode, kinds in STORED.items() for kind in kinds if kind in FORMATS]),
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from(SPECS),
    st.integers(1, MAX_VIEWS),
    st.integers(0, 9),
)
def test_a_valid_image_has_the_documented_shape(
    stored: tuple[str, str], width: int, height: int, spec: InputSpec, views: int, orientation: int
) -> None:
    mode, kind = stored
    stored_image = Image.linear_gradient("L").resize((width, height))
    if mode == "I;16":
        stored_image = Image.fromarray(np.asarray(stored_image).astype(np.uint16) * 257)
    elif mode != "L":
        stored_image = stored_image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored_image.save(
        file, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}), **({"speed": 10} if kind == "AVIF" else {})
    )
    image = outcome(file.getvalue(), spec, views)
    assert isinstance(image, PreprocessedImage), image

    turned = orientation in (5, 6, 7, 8) and kind not in ("GIF", "BMP")
    assert (image.width, image.height) == ((height, width) if turned else (width, height))
    short, long = sorted((width, height))
    largest = 1 if short < 2 * spec.resize else 2 if long < 1.1 * short else MAX_VIEWS
    assert len(image.pixels) == min(views, largest)
    small = (f"upscaled from {image.width}x{image.height}",)
    assert image.warnings == (small if short < spec.resize else ())


@large_examples
@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from(["L", "RGB"]))
def test_an_image_is_refused_exactly_where_it_has_too_many_pixels(width: int, height: int, mode: str) -> None:
    kind = "PNG" if mode == "RGB" else "TIFF"
    found = outcome(announcing(kind, width, height), SPECS[0], 1)
    message = f"the image has {width} x {height} pixels, more than 200,000: upload a smaller one"
    assert (str(found) == message) == (width * height > MAX_PIXELS)


def test_there_are_enough_files_to_mutate() -> None:
    assert len(FILES) > 100
