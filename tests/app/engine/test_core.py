"""The engine in this process: loading, failures and shutdown."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from app.engine.api import EngineClient
from app.engine.core import EngineCore
from app.engine.errors import NotAlive, NotReady, UnknownModel
from app.main import create_engine
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import Classifier, IntegrityError
from tests.app.fakes import CARD, FakeEngine, fake_classifier
from tests.app.running import serving


def core_of(
    load: Callable[[], Classifier], on_failure: Callable[[], None] = lambda: None, **settings: Any
) -> EngineCore:
    return create_engine(Settings(**settings), Telemetry(), {CARD.name: load}, on_failure)


async def until_not_loading(core: EngineCore) -> None:
    async with asyncio.timeout(10):
        await core.models.wait_loaded()


async def started(engine: FakeEngine, **settings: Any) -> EngineCore:
    """A core that has loaded the fake classifier."""
    core = core_of(lambda: fake_classifier(engine), **settings)
    await core.start()
    await until_not_loading(core)
    return core


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


def test_the_model_is_loaded_in_the_engines_thread() -> None:
    async def main() -> None:
        names = []

        def load() -> Classifier:
            names.append(threading.current_thread().name)
            return fake_classifier(FakeEngine())

        core = core_of(load)
        client: EngineClient = core  # it implements the protocol
        states = [core.models.state]
        await client.start()
        await until_not_loading(core)
        assert [*states, core.models.state] == ["loading", "ready"]
        client.check_ready()
        assert [name.startswith("engine") for name in names] == [True]
        await client.stop()

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
        core = core_of(lambda: fake_classifier(FakeEngine()))
        with pytest.raises(NotReady, match="loading"):
            core.check_ready()
        with pytest.raises(NotReady, match="loading"):
            core.catalog.get()
        with pytest.raises(NotReady, match="loading"), core.admit(CARD.name, 1):
            pass
        with pytest.raises(UnknownModel):
            core.catalog.get("other")
        assert core.models.images.used[CARD.name] == 0
        core.check_alive()
        await core.start()
        await core.stop()

    run(main())


def test_a_failure_to_load_is_reported_once() -> None:
    async def main() -> None:
        failures = []

        def load() -> Classifier:
            raise IntegrityError("fetch it again")

        core = core_of(load, lambda: failures.append(True))
        await core.start()
        await until_not_loading(core)
        await asyncio.sleep(0.6)  # the engines are checked meanwhile
        assert core.models.state == "failed"
        assert failures == [True]
        for check in (core.check_alive, core.check_ready):
            with pytest.raises(NotAlive):
                check()
        await core.stop()

    run(main())


def test_an_engine_that_fails_is_noticed_by_the_first_probe() -> None:
    async def main() -> None:
        failures = []
        engine = FakeEngine()
        core = core_of(lambda: fake_classifier(engine), lambda: failures.append(True))
        await core.start()
        await until_not_loading(core)
        engine.failure = RuntimeError("broken")
        for _ in range(3):
            with core.admit(CARD.name, 1) as lease, pytest.raises(RuntimeError, match="broken"):
                await lease.classify([np.zeros((1, 32, 32, 3), np.uint8)])
        with pytest.raises(NotAlive, match="3 batches in succession"):
            core.check_alive()
        assert failures == [True]
        with pytest.raises(NotAlive), core.admit(CARD.name, 1):
            pass
        await core.stop()

    run(main())


def test_an_error_after_loading_leaves_no_service_that_is_loading_for_ever() -> None:
    """The engine reports no batch size, so the batcher cannot be built."""

    class Unfinished(FakeEngine):
        @property
        def preferred_batch(self) -> int:  # type: ignore[override]
            raise RuntimeError("no kernels")

    async def main() -> None:
        failures = []
        core = core_of(lambda: fake_classifier(Unfinished()), lambda: failures.append(True))
        await core.start()
        await until_not_loading(core)
        assert (core.models.state, failures) == ("failed", [True])
        with pytest.raises(NotAlive):
            core.check_alive()
        await core.stop()

    run(main())


@pytest.mark.parametrize(("chosen", "largest"), [(0, 7), (4, 4)])
def test_the_engine_chooses_the_largest_batch_unless_a_setting_does(chosen: int, largest: int) -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.preferred_batch = 7
        core = await started(engine, max_batch=chosen)
        engine.block()
        with core.admit(CARD.name, 11) as lease:
            calls = [
                asyncio.create_task(lease.classify(list(np.zeros((count, 1, 32, 32, 3), np.uint8))))
                for count in (10, 1)
            ]
            await asyncio.sleep(0.05)
            engine.release()
            assert [len(found) for found in await asyncio.gather(*calls)] == [10, 1]
        assert sum(engine.batches) == 11
        assert max(engine.batches) == largest
        await core.stop()

    run(main())


def test_stopping_while_it_loads_does_not_wait_for_the_model() -> None:
    async def main() -> None:
        may_load = threading.Event()

        def load() -> Classifier:
            may_load.wait(20)
            return fake_classifier(FakeEngine())

        core = core_of(load)
        await core.start()
        async with asyncio.timeout(2):
            await core.stop()
        may_load.set()

    run(main())


def test_retry_after_is_right_before_the_first_measurement(tiny_bundle: Any) -> None:
    """It follows from the speed of the engine in its self-test."""

    async def main() -> None:
        core = create_engine(Settings(weights=tiny_bundle, device="cpu"), Telemetry())
        await core.start()
        await until_not_loading(core)
        load = core.models.admission("tiny").load
        assert load.rate == 0, "nothing was measured"
        assert load.first_rate > 20, "the tiny network is fast"
        await core.stop()

    run(main())
