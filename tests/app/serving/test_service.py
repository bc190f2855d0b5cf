import asyncio
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from app.serving.errors import NotAlive, NotReady
from app.serving.images import ClassifiedImage, Upload
from app.serving.service import Service
from app.settings import Settings
from model import Classifier, IntegrityError, UnreadableImage, UnsupportedImage
from tests.app.fakes import CARD, FakeEngine, fake_classifier, image_file, photo
from tests.app.running import serving


async def until_not_loading(service: Service) -> None:
    async with asyncio.timeout(10):
        while service.state == "loading":
            await asyncio.sleep(0.001)


async def started(engine: FakeEngine, **settings: Any) -> Service:
    """A service that has loaded the fake classifier."""
    service = Service(Settings(**settings), {CARD.name: lambda: fake_classifier(engine)}, lambda: None)
    await service.start()
    await until_not_loading(service)
    return service


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_the_model_is_loaded_in_the_engines_thread() -> None:
    async def main() -> None:
        names = []

        def load() -> Classifier:
            names.append(threading.current_thread().name)
            return fake_classifier(FakeEngine())

        service = Service(Settings(), {CARD.name: load}, lambda: None)
        states = [service.state]
        await service.start()
        await until_not_loading(service)
        assert [*states, service.state] == ["loading", "ready"]
        service.check_ready()
        assert [name.startswith("engine") for name in names] == [True]
        await service.stop()

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_the_engine_has_a_lower_priority_than_the_event_loop() -> None:
    def load() -> Classifier:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return fake_classifier(FakeEngine())

    seen: list[int] = []
    with serving(load=load):
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert seen == [max(10, own)]


def test_nothing_is_served_before_the_model_is_loaded() -> None:
    async def main() -> None:
        service = Service(Settings(), {CARD.name: lambda: fake_classifier(FakeEngine())}, lambda: None)
        with pytest.raises(NotReady, match="loading"):
            service.check_ready()
        with pytest.raises(NotReady, match="loading"):
            service.models.get()
        assert service.limits.images.used[CARD.name] == 0
        service.models.check_alive()
        await service.start()
        await service.stop()

    run(main())


def test_a_failure_to_load_is_reported_once() -> None:
    async def main() -> None:
        failures = []

        def load() -> Classifier:
            raise IntegrityError("fetch it again")

        service = Service(Settings(), {CARD.name: load}, lambda: failures.append(True))
        await service.start()
        await until_not_loading(service)
        assert service.state == "failed"
        assert failures == [True]
        with pytest.raises(NotAlive):
            service.models.check_alive()
        with pytest.raises(NotAlive):
            service.check_ready()
        service.drain()
        assert service.state == "failed", "draining does not change that"
        await service.stop()

    run(main())


def test_a_bad_image_does_not_affect_the_others() -> None:
    async def main() -> None:
        service = await started(FakeEngine())
        uploads = [
            Upload("a", image_file(1)),
            Upload("b", b"cat"),
            Upload("c", image_file(2)[:-40]),
            Upload("d", image_file(3)),
        ]
        good, text, damaged, other = await service.models.get().classify(uploads, 1)
        assert isinstance(good, ClassifiedImage)
        assert isinstance(text, UnsupportedImage)
        assert isinstance(damaged, UnreadableImage)
        assert isinstance(other, ClassifiedImage)
        assert good.decode > 0
        assert good.queued >= 0
        assert good.inference > 0
        assert service.limits.images.used[CARD.name] == 0
        await service.stop()

    run(main())


def test_a_large_image_is_classified_with_the_requested_views() -> None:
    async def main() -> None:
        engine = FakeEngine()
        service = await started(engine)
        large, small = await service.models.get().classify([Upload("a", photo()), Upload("b", image_file())], 4)
        assert isinstance(large, ClassifiedImage)
        assert isinstance(small, ClassifiedImage)
        assert large.image.pixels.shape == (4, 32, 32, 3)
        assert small.image.pixels.shape == (1, 32, 32, 3)
        assert engine.views == 5
        await service.stop()

    run(main())


def test_preprocessed_pixels_are_classified_as_the_images_that_they_are_of() -> None:
    async def main() -> None:
        service = await started(FakeEngine())
        images = [image_file(seed) for seed in range(3)]
        expected = await service.models.get().classify([Upload(None, data) for data in images], 1)
        pixels = np.concatenate([each.image.pixels for each in expected if isinstance(each, ClassifiedImage)])
        found = await service.models.get().classify_pixels(pixels)
        for batched, each in zip(found, expected, strict=True):
            assert isinstance(each, ClassifiedImage)
            assert batched.prediction.top_k(10) == each.prediction.top_k(10)
        await service.stop()

    run(main())


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 32, 32, 3), np.float32),
        np.zeros((1, 31, 32, 3), np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((1, 32, 32, 4), np.uint8),
    ],
    ids=["float", "another size", "no batch", "empty", "four channels"],
)
def test_pixels_of_another_shape_or_type_are_refused(pixels: Any) -> None:
    async def main() -> None:
        service = await started(FakeEngine())
        with pytest.raises(ValueError, match="uint8\\[N, 32, 32, 3\\]"):
            await service.models.get().classify_pixels(pixels)
        await service.stop()

    run(main())


def test_an_error_after_loading_leaves_no_service_that_is_loading_for_ever() -> None:
    """The engine reports no batch size, so the batcher cannot be built."""

    class Unfinished(FakeEngine):
        @property
        def preferred_batch(self) -> int:  # type: ignore[override]
            raise RuntimeError("no kernels")

    async def main() -> None:
        failures = []
        service = Service(Settings(), {CARD.name: lambda: fake_classifier(Unfinished())}, lambda: failures.append(True))
        await service.start()
        await until_not_loading(service)
        assert (service.state, failures) == ("failed", [True])
        with pytest.raises(NotAlive):
            service.models.check_alive()
        await service.stop()

    run(main())


def test_the_engine_chooses_the_largest_batch_unless_a_setting_does() -> None:
    async def main() -> None:
        for chosen, batches in ((0, [1, 7, 2]), (4, [1, 4, 4, 1])):
            engine = FakeEngine()
            engine.preferred_batch = 7
            service = await started(engine, max_batch=chosen)
            engine.block()
            pixels = np.zeros((10, 32, 32, 3), np.uint8)
            task = asyncio.create_task(service.models.get().classify_pixels(pixels))
            first = asyncio.create_task(service.models.get().classify_pixels(pixels[:1]))
            await asyncio.sleep(0.05)
            engine.release()
            await asyncio.gather(task, first)
            assert sum(engine.batches) == 11
            assert max(engine.batches) == max(batches)
            await service.stop()

    run(main())


def test_stopping_while_it_loads_does_not_wait_for_the_model() -> None:
    async def main() -> None:
        may_load = threading.Event()

        def load() -> Classifier:
            may_load.wait(20)
            return fake_classifier(FakeEngine())

        service = Service(Settings(), {CARD.name: load}, lambda: None)
        await service.start()
        async with asyncio.timeout(2):
            await service.stop()
        may_load.set()

    run(main())
