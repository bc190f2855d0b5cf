"""A process's part in swaps, with fake engines and a coordinator of its own."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

import model
from app.serving.errors import NotReady, SwapConflict, SwapInterrupted, SwapRefused
from app.serving.images import ClassifiedImage, Upload
from app.serving.service import Service
from app.serving.swap import Coordinator, Message, ShadowPlan
from app.serving.swapper import Swapper, bundle_below
from app.settings import Settings
from model import Classifier, IntegrityError, ModelCard
from model.bundle import open_bundle
from tests.app.fakes import CARD, FakeEngine, image_file, random_pixels

PIXELS = np.stack([random_pixels(seed) for seed in range(8)])


def classifier(temperature: float = 2.0, engine: FakeEngine | None = None, **changes: Any) -> Classifier:
    """A fake one whose version depends on its temperature."""
    calibration = CARD.calibration.model_copy(update={"temperature": temperature})
    return Classifier(CARD.model_copy(update={"calibration": calibration, **changes}), engine or FakeEngine())


OTHER = classifier(3.0).card.version


def in_service(
    root: Path,
    test: Callable[[Service, Swapper], Coroutine[Any, Any, None]],
    load: Callable[[Path], Classifier] = lambda folder: classifier(3.0),
    folders: Mapping[str, Path] = MappingProxyType({}),
) -> None:
    """Run a test with a service that serves `classifier()`, and an empty bundle `new` below the root."""

    async def main() -> None:
        service = Service(Settings(), {CARD.name: classifier}, lambda: None)
        swapper = Swapper(service, load, folders, root)
        await service.start()
        await swapper.start()
        await service.wait_loaded()
        try:
            await test(service, swapper)
        finally:
            await swapper.stop()
            await service.stop()

    (root / "new").mkdir()
    asyncio.run(asyncio.wait_for(main(), 60))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


PLAN = ShadowPlan(share=0.5, images=40, seconds=60, agreement=0.98)


def engine_threads(earlier: Collection[threading.Thread]) -> int:
    """How many threads of engines there are now. Those of earlier tests may end at any time, so they do not count."""
    return sum(thread.name.startswith("engine") and thread not in earlier for thread in threading.enumerate())


def test_a_request_keeps_the_model_that_it_began_with(tmp_path: Path) -> None:
    async def test(service: Service, swapper: Swapper) -> None:
        began_with = service.models.get()
        assert isinstance(began_with.classifier.engine, FakeEngine)
        began_with.classifier.engine.block()
        request = asyncio.create_task(began_with.classify([Upload(None, image_file())], 1))
        status = await swapper.swap(CARD.name, "new")
        assert (status.state, status.version, status.previous) == ("done", OTHER, CARD.version)
        assert service.models.get().card.version == OTHER
        began_with.classifier.engine.release()
        (old,) = await request
        (new,) = await service.models.get().classify([Upload(None, image_file())], 1)
        assert isinstance(old, ClassifiedImage)
        assert isinstance(new, ClassifiedImage)
        assert old.prediction.probabilities.max() > new.prediction.probabilities.max(), "the temperatures differ"

    in_service(tmp_path, test)


@pytest.mark.parametrize("plan", [None, PLAN], ids=["at once", "after a comparison"])
def test_the_previous_model_is_released_when_the_swap_is_confirmed_and_its_last_request_has_ended(
    plan: ShadowPlan | None, tmp_path: Path
) -> None:
    earlier = threading.enumerate()

    async def test(service: Service, swapper: Swapper) -> None:
        held = [service.models.get()]
        network = weakref.ref(held[0].classifier)
        before = engine_threads(earlier)
        await (compare(service, swapper, plan) if plan else swapper.swap(CARD.name, "new"))
        assert engine_threads(earlier) == before + 1
        await swapper.confirm(CARD.name)
        await asyncio.sleep(0.05)
        assert engine_threads(earlier) == before + 1, "a request holds it"
        await held[0].classify_pixels(PIXELS)
        gc.disable()
        try:
            held.clear()
            await until(lambda: engine_threads(earlier) == before)
            assert network() is None, "no garbage collection is needed"
        finally:
            gc.enable()
        await service.models.get().classify_pixels(PIXELS)
        with pytest.raises(SwapConflict, match="no previous version"):
            await swapper.roll_back(CARD.name)

    in_service(tmp_path, test)


def test_a_rollback_returns_to_the_model_that_is_still_loaded(tmp_path: Path) -> None:
    async def test(service: Service, swapper: Swapper) -> None:
        previous = service.models.get()
        await swapper.swap(CARD.name, "new")
        status = await swapper.roll_back(CARD.name)
        assert service.models.get() is previous
        assert (status.version, status.previous) == (CARD.version, None)
        assert len(loaded) == 1
        await service.models.get().classify_pixels(PIXELS)

    def load(folder: Path) -> Classifier:
        loaded.append(folder)
        return classifier(3.0)

    loaded: list[Path] = []
    in_service(tmp_path, test, load)


def test_with_several_processes_no_rollback_returns_to_a_version_whose_files_were_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / CARD.name

    def write(card: ModelCard) -> None:
        (folder / model.CARD_FILE).write_text(card.model_dump_json(), encoding="utf-8")

    def load(found: Path) -> Classifier:
        return Classifier(model.read_card(found / model.CARD_FILE), FakeEngine())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        services = [Service(Settings(), {CARD.name: lambda: load(folder)}, lambda: None) for _ in range(2)]
        swappers = [Swapper(service, load, {}, tmp_path) for service in services]

        def send(member: int, message: Message) -> None:
            loop.call_soon(swappers[member].receive, message)

        def receive(member: int, message: Message) -> None:
            loop.call_soon(coordinator.receive, member, message)

        coordinator = Coordinator({CARD.name: folder}, members=2, send=send)
        for member, (service, swapper) in enumerate(zip(services, swappers, strict=True)):
            swapper.connect(partial(receive, member))
            coordinator.join(member)
            await service.start()
            await swapper.start()
            await service.wait_loaded()

        def serving() -> list[str]:
            return [service.models.get().card.version for service in services]

        try:
            write(classifier(3.0).card)
            assert (await swappers[0].swap(CARD.name, None)).previous == CARD.version
            with pytest.raises(SwapRefused, match=f"holds version {OTHER} now, not {CARD.version}"):
                await swappers[0].roll_back(CARD.name)
            assert serving() == [OTHER, OTHER]
            write(CARD)
            await swappers[0].roll_back(CARD.name)
            assert serving() == [CARD.version, CARD.version]
        finally:
            for service, swapper in zip(services, swappers, strict=True):
                await swapper.stop()
                await service.stop()

    folder.mkdir()
    write(CARD)
    asyncio.run(asyncio.wait_for(main(), 60))


def raises(error: Exception) -> Callable[[Path], Classifier]:
    def load(folder: Path) -> Classifier:
        raise error

    return load


@pytest.mark.parametrize(
    ("load", "reason"),
    [
        (raises(IntegrityError("the SHA-256 is wrong")), "the SHA-256 is wrong"),
        (raises(FileNotFoundError(2, "No such file or directory")), "cannot be read \\(No such file or directory\\)"),
        (raises(RuntimeError("secret")), "RuntimeError.*see the log"),
        (lambda folder: classifier(3.0, labels=CARD.labels[::-1]), "labels"),
        (lambda folder: classifier(3.0, name="another"), "the name on the card is another"),
    ],
    ids=["corrupt", "missing", "unexpected", "labels", "name"],
)
def test_a_bundle_that_fails_leaves_the_old_one_serving(
    load: Callable[[Path], Classifier], reason: str, tmp_path: Path
) -> None:
    earlier = threading.enumerate()

    async def test(service: Service, swapper: Swapper) -> None:
        serving, threads = service.models.get(), engine_threads(earlier)
        with pytest.raises(SwapRefused, match=reason) as refusal:
            await swapper.swap(CARD.name, "new")
        assert "secret" not in str(refusal.value)
        assert service.models.get() is serving
        await serving.classify_pixels(PIXELS)
        service.check_ready()
        status = swapper.status(CARD.name)
        assert status
        assert (status.state, status.reason) == ("refused", str(refusal.value))
        assert b'tenfold_swaps_total{model="fake-net",outcome="refused"} 1.0' in service.exposition()
        await until(lambda: engine_threads(earlier) == threads)

    in_service(tmp_path, test, load)


def test_a_bundle_that_is_deleted_while_it_is_loaded_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    def load(folder: Path) -> Classifier:
        open_bundle(folder)
        shutil.rmtree(folder)
        return model.load(folder, device="cpu")

    async def test(service: Service, swapper: Swapper) -> None:
        shutil.copytree(tiny_bundle, tmp_path / "new", dirs_exist_ok=True)
        with pytest.raises(SwapRefused):
            await swapper.swap(CARD.name, "new")
        await service.models.get().classify_pixels(PIXELS)

    in_service(tmp_path, test, load)


def test_a_failed_reload_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(service: Service, swapper: Swapper) -> None:
        caplog.clear()
        await swapper.reload()
        assert caplog.messages == [f"{CARD.name}: no swap (refused): the SHA-256 is wrong"]
        service.drain()
        caplog.clear()
        await swapper.reload()
        (message,) = caplog.messages
        assert message.startswith(f"the model {CARD.name} is not reloaded: the service is draining")

    in_service(tmp_path, test, raises(IntegrityError("the SHA-256 is wrong")), {CARD.name: tmp_path / "new"})


def test_of_two_swaps_at_once_the_second_is_a_conflict(tmp_path: Path) -> None:
    may_load = threading.Event()

    def load(folder: Path) -> Classifier:
        may_load.wait(20)
        return classifier(3.0)

    async def test(service: Service, swapper: Swapper) -> None:
        first = asyncio.create_task(swapper.swap(CARD.name, "new"))
        await until(lambda: bool(swapper.status(CARD.name)))
        with pytest.raises(SwapConflict, match="in progress"):
            await swapper.swap(CARD.name, "new")
        may_load.set()
        assert (await first).state == "done"

    in_service(tmp_path, test, load)


def test_a_shutdown_interrupts_a_swap(tmp_path: Path) -> None:
    may_load = threading.Event()

    def load(folder: Path) -> Classifier:
        may_load.wait(20)
        return classifier(3.0)

    async def test(service: Service, swapper: Swapper) -> None:
        swap = asyncio.create_task(swapper.swap(CARD.name, "new"))
        await until(lambda: bool(swapper.status(CARD.name)))
        service.drain()
        swapper.interrupt()
        with pytest.raises(SwapInterrupted):
            await swap
        with pytest.raises(NotReady, match="draining"):
            await swapper.swap(CARD.name, "new")
        may_load.set()

    in_service(tmp_path, test, load)


async def compare(
    service: Service, swapper: Swapper, plan: ShadowPlan, *, between: Callable[[], None] = lambda: None
) -> Any:
    """Swap with a comparison, under requests that continue until it ends."""
    swap = asyncio.create_task(swapper.swap(CARD.name, "new", plan))
    while not swap.done():
        await service.models.get().classify_pixels(PIXELS)
        between()
        await asyncio.sleep(0.005)
    return await swap


def test_weights_that_agree_on_live_images_are_served(tmp_path: Path) -> None:
    async def test(service: Service, swapper: Swapper) -> None:
        status = await compare(service, swapper, PLAN)
        found = status.comparison
        assert status.version == OTHER
        assert found.images >= 40
        assert found.agreement == 1
        assert found.confidence[0] > found.confidence[1], "a higher temperature lowers the confidence"
        assert found.accepted[0] == found.accepted[1]
        text = service.exposition().decode()
        assert 'tenfold_shadow_images_total{model="fake-net",outcome="agreed"}' in text
        assert 'tenfold_shadow_confidence_sum{model="fake-net",weights="candidate"}' in text
        assert service.models.get().batcher.observer is None

    in_service(tmp_path, test)


def test_weights_that_disagree_on_live_images_are_refused(tmp_path: Path) -> None:
    class Reversed(FakeEngine):
        def run(self, pixels: Any) -> Any:
            out = super().run(pixels)
            return out._replace(logits=out.logits[:, ::-1].copy())

    async def test(service: Service, swapper: Swapper) -> None:
        serving = service.models.get()
        with pytest.raises(SwapRefused, match="agree on"):
            await compare(service, swapper, PLAN)
        assert service.models.get() is serving
        assert serving.batcher.observer is None

    in_service(tmp_path, test, lambda folder: classifier(3.0, Reversed()))


def test_weights_that_fail_on_live_images_are_refused_and_no_request_notices(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.failure = RuntimeError("no kernels")

    async def test(service: Service, swapper: Swapper) -> None:
        with pytest.raises(SwapRefused, match=r"agree on 0\.00%"):
            await compare(service, swapper, PLAN)
        service.check_ready()

    in_service(tmp_path, test, lambda folder: classifier(3.0, engine))


def test_weights_that_are_slow_delay_no_request_and_copies_are_dropped(tmp_path: Path) -> None:
    engine = FakeEngine()

    async def test(service: Service, swapper: Swapper) -> None:
        plan = PLAN.model_copy(update={"share": 1.0, "seconds": 0.5})
        engine.block()
        with pytest.raises(SwapRefused, match="only 0 of 40 images"):
            await compare(service, swapper, plan)
        status = swapper.status(CARD.name)
        assert status
        assert status.comparison
        assert status.comparison.dropped > 0
        engine.release()

    in_service(tmp_path, test, lambda folder: classifier(3.0, engine))


def test_weights_with_another_test_transform_cannot_be_compared(tmp_path: Path) -> None:
    async def test(service: Service, swapper: Swapper) -> None:
        with pytest.raises(SwapRefused, match="swap without shadow"):
            await swapper.swap(CARD.name, "new", PLAN)
        assert (await swapper.swap(CARD.name, "new")).state == "done"

    spec = CARD.input.model_copy(update={"resize": 64, "crop": 64})
    in_service(tmp_path, test, lambda folder: classifier(3.0, input=spec))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for path in (folder / "a" / "deep", tmp_path / "outside"):
        path.mkdir(parents=True)
        (path / "card.json").write_text("{}")
    (folder / "a" / "card.json").write_text("{}")
    (folder / "inside").symlink_to(folder / "a")
    (folder / "out").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "mixed").mkdir()
    (folder / "mixed" / "card.json").symlink_to(tmp_path / "outside" / "card.json")
    (folder / "cache").mkdir()
    (folder / "cache" / "card.json").symlink_to(folder / "a" / "card.json")
    (folder / "a,b").mkdir()
    return folder


def test_a_folder_below_the_root_may_be_named(root: Path) -> None:
    as_completed = (f"{root.name}/a", f"{root.name}/a/", f"./{root.name}/a", f"{root}/a/", f"../{root.name}/a")
    for weights in ("a", "./a", "a/", "a/../a", "inside", str(root / "a"), *as_completed):
        assert bundle_below(root, weights) == (root / "a").resolve()
    assert bundle_below(root, "a/deep") == (root / "a" / "deep").resolve()
    assert bundle_below(root, "cache") == (root / "cache").resolve(), "links within the root are fine"


def test_the_root_may_be_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(root)
    for weights in ("a", "linked/a", "root/a"):
        assert bundle_below(tmp_path / "linked", weights) == (root / "a").resolve()


@pytest.mark.parametrize(
    "weights",
    [
        "..", ".", "", "../outside", "a/../../outside", "/", "/etc", "out", "out/", "loop", "mixed", "a/card.json",
        "none", "root", "root/", "root/none", "root/../outside",
        "~", "a\0b", "a" * 5000, "a,b", "..\\outside", "file:///etc", "%2e%2e/outside",
    ],
)  # fmt: skip
def test_nothing_else_may_be_named(root: Path, weights: str) -> None:
    with pytest.raises(SwapRefused):
        bundle_below(root, weights)
