"""Several engines with one queue, as with TENFOLD_DEVICE=cuda:0,cuda:1."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch

from app.engine.core import EngineCore
from app.engine.errors import NotReady
from app.main import create_engine
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from tests.app.fakes import CARD, FakeEngine, fake_classifier, random_pixels


async def until_ready(core: EngineCore) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                core.check_ready()
            except NotReady:
                await asyncio.sleep(0.005)
            else:
                return


def test_two_lanes_take_batches_from_one_queue_at_the_same_time() -> None:
    async def main() -> None:
        engines = [FakeEngine(), FakeEngine()]
        core = EngineCore(
            Settings(),
            {CARD.name: [lambda engine=engine: fake_classifier(engine) for engine in engines]},  # type: ignore[misc]
            Telemetry(),
            load_folder=lambda _: [],
            folders={},
            on_failure=lambda: None,
        )
        await core.start()
        await until_ready(core)
        expected = [fake_classifier(FakeEngine()).classify([random_pixels(seed)[None]])[0] for seed in range(40)]
        for engine in engines:
            engine.block()
        with core.admit(CARD.name, 40) as lease:
            calls = []
            for seed in range(2):
                calls.append(asyncio.create_task(lease.classify([random_pixels(seed)[None]])))
                async with asyncio.timeout(20):
                    while sum(engine.views for engine in engines) == seed:
                        await asyncio.sleep(0.005)
            assert [engine.batches for engine in engines] == [[1], [1]], "each lane has taken one of the images"
            calls += [asyncio.create_task(lease.classify([random_pixels(seed)[None]])) for seed in range(2, 40)]
            await asyncio.sleep(0.05)
            for engine in engines:
                engine.release()
            found = [(await call)[0].prediction for call in calls]
        for each, other in zip(found, expected, strict=True):
            assert each.top_k(1)[0].label == other.top_k(1)[0].label
            np.testing.assert_allclose(each.probabilities, other.probabilities, atol=1e-6)
        assert sum(engine.views for engine in engines) == 40
        await core.stop()

    asyncio.run(main())


def test_each_device_of_the_settings_is_a_lane(tiny_bundle: Path) -> None:
    """Without a GPU, the error of the first lane says so."""

    async def main() -> None:
        failures = []
        settings = Settings(weights=tiny_bundle, device="cuda:0,cuda:1", engine="torch")
        assert settings.devices == ("cuda:0", "cuda:1")
        core = create_engine(settings, Telemetry(), on_failure=lambda: failures.append(True))
        await core.start()
        await core.models.wait_loaded()
        assert failures == [True]
        assert core.catalog.state("tiny") == "failed"
        await core.stop()

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    asyncio.run(main())
