"""Host and fronts over a real Unix socket, in one event loop."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.engine import wire
from app.engine.admission import Load
from app.engine.api import Batched, Catalog, EngineClient, ModelInfo, Source
from app.engine.core import EngineCore
from app.engine.errors import NotReady, QueueFull, SwapConflict, SwapRefused
from app.engine.host import Host
from app.engine.remote import RemoteEngine
from app.engine.wire import Kind
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import Classifier, NotExplainable
from tests.app.fakes import CARD, FakeEngine, fake_classifier, random_pixels

NAME = CARD.name
INFO = ModelInfo(CARD, "fake", "cpu", "float32", 32)


def other_version(engine: FakeEngine) -> Classifier:
    calibration = CARD.calibration.model_copy(update={"temperature": 3.0})
    return Classifier(CARD.model_copy(update={"calibration": calibration}), engine)


@dataclass
class Setup:
    """A host and its fronts."""

    path: Path
    core: EngineCore
    engine: FakeEngine
    fronts: list[RemoteEngine]


@asynccontextmanager
async def hosting(folder: Path, fronts: int = 1, **settings: Any) -> AsyncIterator[Setup]:
    """A host with a fake engine, and fronts that have seen its catalog. A swap loads another version."""
    engine = FakeEngine()
    (folder / "new").mkdir(exist_ok=True)
    core = EngineCore(
        Settings(weights_root=folder, **settings),
        {NAME: [partial(fake_classifier, engine)]},
        Telemetry(),
        load_folder=lambda _: [partial(other_version, FakeEngine())],
        folders={},
        on_failure=lambda: None,
    )
    path = folder / "engine"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        host = Host(core)
        await host.start(listening)
        await core.models.wait_loaded()
        connected = [RemoteEngine(path, [NAME]) for _ in range(fronts)]
        for front in connected:
            client: EngineClient = front  # it implements the protocol
            await client.start()
            await until(partial(is_ready, front), "the front is ready")
        try:
            yield Setup(path, core, engine, connected)
        finally:
            engine.release()
            for front in connected:
                await front.stop()
            await host.stop()


def is_ready(front: RemoteEngine) -> bool:
    try:
        front.check_ready()
    except NotReady:
        return False
    return True


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)
    assert condition(), what


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


async def classify(engine: EngineClient, *seeds: int, maps: bool = False, views: int = 1) -> list[Batched]:
    images = [np.stack([random_pixels(seed)] * views) for seed in seeds]
    with engine.admit(NAME, len(images), deadline=float("inf")) as lease:
        return await lease.classify(images, maps=maps)


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("views", [1, 3])
def test_predictions_are_those_of_the_engine_in_the_same_process(tmp_path: Path, maps: bool, views: int) -> None:
    async def main() -> None:
        async with hosting(tmp_path, fronts=2) as setup:
            expected = await classify(setup.core, *range(5), views=views)
            for front in setup.fronts:
                found = await classify(front, *range(5), maps=maps, views=views)
                for each, other in zip(found, expected, strict=True):
                    assert each.queued >= 0
                    assert each.inference > 0
                    one, two = each.prediction, other.prediction
                    assert (one.labels, one.thresholds) == (two.labels, two.thresholds)
                    assert (one.score, one.in_distribution) == (two.score, two.in_distribution)
                    np.testing.assert_array_equal(one.probabilities, two.probabilities)
                    np.testing.assert_array_equal(one.logits, two.logits)
                    if maps:
                        np.testing.assert_array_equal(one.maps, two.maps)
                    else:
                        assert one.maps is None
            await until(lambda: setup.core.models.images.used[NAME] == 0, "the requests have ended")

    run(main())


def test_a_cancelled_request_takes_its_images_from_the_queue(tmp_path: Path) -> None:
    async def main() -> None:
        async with hosting(tmp_path) as setup:
            setup.engine.block()
            first = asyncio.create_task(classify(setup.fronts[0], 1))
            await until(lambda: setup.engine.views == 1, "the engine is busy")
            second = asyncio.create_task(classify(setup.fronts[0], 2, 3))
            await until(lambda: setup.core.models.images.used[NAME] == 3, "all are admitted")
            second.cancel()
            await until(lambda: setup.core.models.images.used[NAME] == 1, "its images are gone")
            setup.engine.release()
            await first
            await classify(setup.fronts[0], 4)
            assert setup.engine.views == 2

    run(main())


def test_a_front_that_ends_releases_its_images(tmp_path: Path) -> None:
    async def main() -> None:
        async with hosting(tmp_path, fronts=2) as setup:
            setup.engine.block()
            blocked = asyncio.create_task(classify(setup.fronts[0], 1))
            waiting = asyncio.create_task(classify(setup.fronts[1], 2, 3))
            await until(lambda: setup.core.models.images.used[NAME] == 3, "all are admitted")
            await setup.fronts[1].stop()
            await until(lambda: setup.core.models.images.used[NAME] == 1, "its images are gone")
            with pytest.raises(NotReady):
                await waiting
            setup.engine.release()
            await blocked

    run(main())


def test_the_limit_of_the_engine_is_final_and_its_load_is_reported(tmp_path: Path) -> None:
    async def main() -> None:
        async with hosting(tmp_path, fronts=2, queue_size=4, max_files=4) as setup:
            one, other = setup.fronts
            setup.engine.block()
            first = asyncio.create_task(classify(one, 1, 2, 3))
            await until(lambda: setup.core.models.images.used[NAME] == 3, "they are admitted")
            with pytest.raises(QueueFull, match="3 images for fake-net are in progress and the limit is 4") as refusal:
                await classify(other, 4, 5)
            assert refusal.value.retry_after > 0
            setup.engine.release()
            await first
            with one.admit(NAME, 4, deadline=float("inf")) as lease:
                await lease.classify([random_pixels(1)[None]])
                with pytest.raises(QueueFull):  # by the load that the result has reported
                    one.check_images(NAME, 1)
            await asyncio.sleep(0.3)
            one.check_images(NAME, 4)  # an old report says nothing

    run(main())


def test_a_host_that_ends_fails_its_calls_and_the_front_connects_again(tmp_path: Path) -> None:
    async def main() -> None:
        async with hosting(tmp_path) as setup:
            pass
        front = RemoteEngine(setup.path, [NAME])
        await front.start()
        with pytest.raises(NotReady):
            front.check_ready()
        with pytest.raises(NotReady):
            await classify(front, 1)
        with pytest.raises(NotReady):
            await front.drift()
        front.check_alive()
        async with hosting(tmp_path):
            await until(lambda: is_ready(front), "it is connected")
            assert len(await classify(front, 1)) == 1
        await until(lambda: not is_ready(front), "the host has ended")
        async with hosting(tmp_path) as setup:
            await until(lambda: is_ready(front), "it is connected again")
            setup.engine.block()
            call = asyncio.create_task(classify(front, 1))
            await until(lambda: setup.core.models.images.used[NAME] == 1, "it is admitted")
        with pytest.raises(NotReady):
            await call
        await front.stop()

    run(main())


def test_a_replaced_version_stays_loaded_until_its_requests_and_fronts_have_left(tmp_path: Path) -> None:
    async def main() -> None:
        async with hosting(tmp_path, fronts=2) as setup:
            one, other = setup.fronts
            old = setup.core.models.get(NAME)
            with one.admit(NAME, 1, deadline=float("inf")) as lease:
                status = await other.swap(NAME, "new")
                assert status.state == "done"
                assert {front.catalog.get(NAME).card.version for front in setup.fronts} == {status.version}
                assert (await other.confirm(NAME)).state == "done"
                await asyncio.sleep(0.05)
                assert old.users == 1
                (found,) = await lease.classify([random_pixels(1)[None]])
                (new,) = await classify(one, 1)
                assert found.prediction.probabilities.max() > new.prediction.probabilities.max()
                assert lease.model.card.version == CARD.version
            await until(lambda: old.users == 0, "nobody uses it")
            assert old.retired
            with pytest.raises(SwapConflict):
                await one.roll_back(NAME)
            with pytest.raises(SwapRefused, match="not a folder below"):
                await one.swap(NAME, "none")
            found_status = await one.swap_status(NAME)
            assert found_status
            assert found_status.state == "refused"

    run(main())


def test_a_front_that_has_not_seen_new_weights_yet_may_use_the_old_ones(tmp_path: Path) -> None:
    async def main() -> None:
        async with hosting(tmp_path) as setup:
            (front,) = setup.fronts
            assert front._connection
            transport = front._connection._transport
            assert transport
            transport.pause_reading()
            assert (await setup.core.swap(NAME, "new")).state == "done"
            await setup.core.confirm(NAME)
            assert front.catalog.get(NAME).card.version == CARD.version
            call = asyncio.create_task(classify(front, 1))
            await until(lambda: setup.engine.views == 1, "the old weights have classified it")
            transport.resume_reading()
            assert len(await call) == 1
            await until(lambda: front.catalog.get(NAME).card.version != CARD.version, "it has seen the new ones")
            await classify(front, 1)
            assert setup.engine.views == 1

    run(main())


def test_other_calls_reach_the_engine(tmp_path: Path) -> None:
    async def main() -> None:
        async with hosting(tmp_path, feedback=tmp_path / "store", drift_min_images=1) as setup:
            (front,) = setup.fronts
            with front.admit(NAME, 1, deadline=float("inf")) as lease:
                await lease.classify([random_pixels(1)[None]], [Source("mine", 0, b"a file")])
                with pytest.raises(NotExplainable):
                    await lease.grad_cam(random_pixels(1)[None], 3)
            found = await front.find_prediction("mine", 0)
            assert found
            assert (found.request_id, found.model, found.image) == ("mine", NAME, None)
            assert await front.find_prediction("other", 0) is None
            assert await front.set_label("mine", 0, "cat")
            drift = await front.drift()
            assert drift == await setup.core.drift()
            assert drift[NAME].images == 1
            await front.sample()
            with pytest.raises(wire.RemoteError, match="KeyError"):
                await front._call("nothing")

    run(main())


# Frames


class Recorder(wire.Connection):
    """Notes the frames that arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[Kind, bytes]] = []

    def on_frame(self, kind: Kind, payload: memoryview) -> None:
        self.frames.append((kind, bytes(payload)))


@pytest.mark.parametrize("size", [1, 2, 7, 9, 10, 100, 10_000])
def test_frames_arrive_whole_however_they_are_cut(size: int) -> None:
    frames = [(Kind.CLOSE, b""), (Kind.CALL, b"x" * 3000), (Kind.SEEN, b"12345678"), (Kind.MAPS, b"y")]
    data = b"".join(struct.pack("<BQ", kind, len(payload)) + payload for kind, payload in frames)
    recorder = Recorder()
    for start in range(0, len(data), size):
        recorder.data_received(data[start : start + size])
    assert recorder.frames == frames


def test_the_images_of_a_request_are_those_that_were_sent() -> None:
    images = [np.random.RandomState(views).randint(0, 256, (views, 8, 8, 3), np.uint8) for views in (1, 5, 2)]
    sources = [Source("a", 0, b"file"), Source("a", 1, None), Source("a", 2, b"")]
    for given in ([], sources):
        payload = b"".join(bytes(part) for part in wire.Classify(7, 9, images, given, True).encode())
        found = wire.Classify.decode(memoryview(payload))
        assert (found.lease, found.call, found.maps, found.sources) == (7, 9, True, given)
        for each, other in zip(found.images, images, strict=True):
            np.testing.assert_array_equal(each, other)


def test_other_frames_are_what_was_sent() -> None:
    admit = wire.Admit(1, 2, 3.5, "näme", "0123456789ab")
    assert wire.Admit.decode(memoryview(admit.encode())) == admit
    pixels = random_pixels(1)[None]
    payload = b"".join(bytes(part) for part in wire.encode_grad_cam(1, 2, 3, pixels))
    lease, call, index, found = wire.decode_grad_cam(memoryview(payload))
    assert (lease, call, index) == (1, 2, 3)
    np.testing.assert_array_equal(found, pixels)
    maps = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    np.testing.assert_array_equal(wire.decode_maps(memoryview(wire.encode_maps(5, maps))), maps)
    results = wire.Results(4, Load(1, -2, 3.0, 4.0), [])
    assert wire.Results.decode(memoryview(b"".join(map(bytes, results.encode(maps=False)))), CARD) == results
    catalog, other = Catalog(["a", NAME]), Catalog(["a", NAME])
    catalog.put(INFO)
    catalog.fail("a", "broken")
    wire.update(other, memoryview(wire.encode_catalog(1, catalog)))
    assert other.get(NAME) == INFO
    assert [other.state(name) for name in other.names] == ["failed", "ready"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (QueueFull("full", 2.5), QueueFull),
        (NotReady("loading"), NotReady),
        (NotExplainable("no maps"), NotExplainable),
        (ValueError("the secret"), wire.RemoteError),
    ],
)
def test_errors_are_the_same_by_name_and_unknown_ones_say_nothing(error: Exception, expected: type[Exception]) -> None:
    found = wire.decode_error(memoryview(wire.encode_error(1, error)))
    assert type(found) is expected
    assert getattr(found, "retry_after", None) == getattr(error, "retry_after", None)
    assert ("secret" in str(found)) is False
