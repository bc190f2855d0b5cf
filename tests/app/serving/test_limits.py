"""Files that are made to take much memory or time end in a result or an error, and harm nothing else."""

import asyncio
import sys
from contextlib import nullcontext, suppress

import numpy as np
import pytest

from app.serving.decoding import Decoder, Flow
from app.settings import Settings
from model import MAX_VIEWS, ImageError, decode_memory, preprocess
from tests.app.fakes import CARD, photo
from tests.hostile import HEAVY, Heavy, announcing, corpus, encoded
from tests.hostile import photo as soft_noise

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the limits")

SETTINGS = Settings()
# Those that are quick to make and to decode.
QUICK = (
    "PNG of one bit, 8 x 6,250,000", "PNG with 60 compressed texts", "TIFF of 3,000 strips",
    "TIFF by fax, 50,000,000 x 1", "WebP of 34 bytes, larger", "BMP in run lengths, larger", "JPEG of CMYK",
)  # fmt: skip


async def decode_all(files: list[Heavy]) -> None:
    reasons = list[str]()
    decoder = Decoder(
        threads=2,
        max_bytes=SETTINGS.max_decode_bytes,
        max_pixels=SETTINGS.max_pixels,
        timeout=60,  # other jobs may use the CPUs, and the limit of CPU time holds
        on_crash=reasons.append,
    )
    decoder.start()
    try:
        for heavy in files:
            with suppress(ImageError) if heavy.refused else nullcontext():
                image = await decoder.preprocess(heavy.make(), CARD.input, MAX_VIEWS, Flow("a"))
                assert image.pixels.shape[1:] == (CARD.input.crop, CARD.input.crop, 3), heavy.name
            found = await decoder.preprocess(photo(), CARD.input, 2, Flow("a"))
            expected = preprocess(photo(), CARD.input, max_pixels=10**6, views=2)
            assert np.array_equal(found.pixels, expected.pixels), heavy.name
    finally:
        decoder.stop()
    assert set(reasons) <= {"cpu-time", "wall-time"}


def test_no_small_file_harms_the_service() -> None:
    files = [heavy for heavy in HEAVY if heavy.name in QUICK]
    assert len(files) == len(QUICK)
    asyncio.run(decode_all(files))


@pytest.mark.slow
@pytest.mark.parametrize("start", range(0, len(HEAVY), 8))
def test_no_file_of_any_kind_harms_the_service(start: int) -> None:
    asyncio.run(decode_all(list(HEAVY[start : start + 8])))


def test_the_estimate_follows_the_size_at_which_a_jpeg_is_decoded() -> None:
    small, large = (encoded(soft_noise(size=size), "JPEG") for size in ((1000, 750), (4000, 3000)))
    limits = {"side": 32, "max_pixels": SETTINGS.max_pixels}
    assert decode_memory(large, **limits) < 2 * decode_memory(small, **limits)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "VP8", "VP8L", "GIF", "BMP", "TIFF", "AVIF"])
def test_the_estimate_reads_the_size_from_the_header(kind: str) -> None:
    small, large = (
        decode_memory(announcing(kind, side, side), side=1_000, max_pixels=SETTINGS.max_pixels) for side in (50, 1_500)
    )
    assert large > small + 6 * 1_400**2


def test_the_estimate_is_bounded_for_every_file() -> None:
    for sample in corpus():
        memory = decode_memory(sample.data, side=32, max_pixels=SETTINGS.max_pixels)
        assert 10_000_000 < memory <= SETTINGS.max_decode_bytes, sample.name
