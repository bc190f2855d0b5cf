import asyncio
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from app.http.upload import Upload
from app.serving.errors import NotAlive, NotReady, QueueFull
from app.serving.service import ClassifiedImage, Service
from app.settings import Settings
from model import Classifier, IntegrityError, UnreadableImage, UnsupportedImage
from tests.app.fakes import FakeEngine, fake_classifier, photo, picture
from tests.app.running import serving


async def until_not_loading(service: Service) -> None:
    async with asyncio.timeout(10):
        while service.state == "loading":
            await asyncio.sleep(0.001)


async def started(engine: FakeEngine, **settings: Any) -> Service:
    """A service that has loaded the fake classifier."""
    service = Service(Settings(**settings), lambda: fake_classifier(engine), lambda: None)
    await service.start()
    await until_not_loading(service)
    return service


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_it_loads_in_the_engines_thread() -> None:
    async def main() -> None:
        names = []

        def load() -> Classifier:
            names.append(threading.current_thread().name)
            return fake_classifier(FakeEngine())

        service = Service(Settings(), load, lambda: None)
        states = [service.state]
        await service.start()
        await until_not_loading(service)
        assert [*states, service.state] == ["loading", "ready"]
        service.check_ready()
        assert [name.startswith("engine") for name in names] == [True]
        await service.stop()

    run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_the_engine_gives_way_to_the_event_loop() -> None:
    def load() -> Classifier:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return fake_classifier(FakeEngine())

    seen: list[int] = []
    with serving(load=load):
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert seen == [max(10, own)]


def test_nothing_is_served_before_it_has_loaded() -> None:
    async def main() -> None:
        service = Service(Settings(), lambda: fake_classifier(FakeEngine()), lambda: None)
        with pytest.raises(NotReady, match="loading"):
            service.check_ready()
        with pytest.raises(NotReady, match="loading"):
            _ = service.classifier
        with pytest.raises(NotReady, match="loading"):
            await service.classify([Upload(None, picture())], 1)
        assert service.admitted == 0
        service.check_alive()
        await service.start()
        await service.stop()

    run(main())


def test_a_failure_to_load_is_told_once() -> None:
    async def main() -> None:
        told = []

        def load() -> Classifier:
            raise IntegrityError("fetch it again")

        service = Service(Settings(), load, lambda: told.append(True))
        await service.start()
        await until_not_loading(service)
        assert service.state == "failed"
        assert told == [True]
        with pytest.raises(NotAlive):
            service.check_alive()
        with pytest.raises(NotReady):
            service.check_ready()
        service.drain()
        assert service.state == "failed", "draining does not make it well"
        await service.stop()

    run(main())


def test_each_picture_stands_or_falls_alone() -> None:
    async def main() -> None:
        service = await started(FakeEngine())
        uploads = [Upload("a", picture(1)), Upload("b", b"cat"), Upload("c", picture(2)[:-40]), Upload("d", picture(3))]
        good, text, torn, other = await service.classify(uploads, 1)
        assert isinstance(good, ClassifiedImage)
        assert isinstance(text, UnsupportedImage)
        assert isinstance(torn, UnreadableImage)
        assert isinstance(other, ClassifiedImage)
        assert good.decode > 0
        assert good.queued >= 0
        assert good.inference > 0
        assert service.admitted == 0
        await service.stop()

    run(main())


def test_a_large_picture_is_classified_by_the_views_asked_for() -> None:
    async def main() -> None:
        engine = FakeEngine()
        service = await started(engine)
        large, small = await service.classify([Upload("a", photo()), Upload("b", picture())], 4)
        assert isinstance(large, ClassifiedImage)
        assert isinstance(small, ClassifiedImage)
        assert large.picture.pixels.shape == (4, 32, 32, 3)
        assert small.picture.pixels.shape == (1, 32, 32, 3)
        assert engine.views == 5
        await service.stop()

    run(main())


def test_admission_counts_pictures_and_is_given_back_in_every_way_out() -> None:
    async def main() -> None:
        engine = FakeEngine()
        service = await started(engine, queue_size=6, max_files=6)
        engine.block()
        first = asyncio.create_task(service.classify([Upload(None, picture(1))] * 4, 1))
        await asyncio.sleep(0)
        assert service.admitted == 4
        with pytest.raises(QueueFull):
            await service.classify([Upload(None, picture(1))] * 3, 1)
        second = asyncio.create_task(service.classify([Upload(None, picture(1))] * 2, 1))
        await asyncio.sleep(0)
        assert service.admitted == 6
        second.cancel()
        await asyncio.wait([second])
        assert service.admitted == 4
        engine.failure = RuntimeError("out of memory")
        engine.release()
        with pytest.raises(RuntimeError, match="out of memory"):
            await first
        assert service.admitted == 0
        await service.stop()

    run(main())


def test_stopping_while_it_loads_does_not_wait_for_the_model() -> None:
    async def main() -> None:
        may_load = threading.Event()

        def load() -> Classifier:
            may_load.wait(20)
            return fake_classifier(FakeEngine())

        service = Service(Settings(), load, lambda: None)
        await service.start()
        async with asyncio.timeout(2):
            await service.stop()
        may_load.set()

    run(main())
