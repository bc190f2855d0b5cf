"""From uploaded files to classified images."""

import asyncio

import pytest

from app.engine.core import EngineCore
from app.main import create_engine
from app.serving.decoding import Decoder
from app.serving.images import ClassifiedImage, Upload, classify
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import ImageError, UnreadableImage, UnsupportedImage
from tests.app.fakes import CARD, FakeEngine, fake_classifier, image_file, photo


async def classified(engine: FakeEngine, uploads: list[Upload], views: int) -> list[ClassifiedImage | ImageError]:
    """The results of a request to a service of its own."""
    core: EngineCore = create_engine(Settings(), Telemetry(), {CARD.name: lambda: fake_classifier(engine)})
    decoder = Decoder(threads=2, max_bytes=360_000_000, max_pixels=50_000_000)
    decoder.start()
    await core.start()
    await core.models.wait_loaded()
    try:
        with core.admit(CARD.name, len(uploads)) as lease:
            found = await classify(uploads, lease, decoder, views)
        assert core.models.images.used[CARD.name] == 0
        return found
    finally:
        await core.stop()
        decoder.stop()


def test_a_bad_image_does_not_affect_the_others() -> None:
    uploads = [
        Upload("a", image_file(1)),
        Upload("b", b"cat"),
        Upload("c", image_file(2)[:-40]),
        Upload("d", image_file(3)),
    ]
    good, text, damaged, other = asyncio.run(classified(FakeEngine(), uploads, 1))
    assert isinstance(good, ClassifiedImage)
    assert isinstance(text, UnsupportedImage)
    assert isinstance(damaged, UnreadableImage)
    assert isinstance(other, ClassifiedImage)
    assert good.decode > 0
    assert good.queued >= 0
    assert good.inference > 0


def test_a_large_image_is_classified_with_the_requested_views() -> None:
    engine = FakeEngine()
    large, small = asyncio.run(classified(engine, [Upload("a", photo()), Upload("b", image_file())], 4))
    assert isinstance(large, ClassifiedImage)
    assert isinstance(small, ClassifiedImage)
    assert large.image.pixels.shape == (4, 32, 32, 3)
    assert small.image.pixels.shape == (1, 32, 32, 3)
    assert engine.views == 5


def test_an_engine_that_fails_fails_the_request() -> None:
    engine = FakeEngine()
    engine.failure = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(classified(engine, [Upload("a", image_file(1)), Upload("b", image_file(2))], 1))
