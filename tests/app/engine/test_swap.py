"""Swaps of weights, with fake engines."""

import asyncio
import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import model
from app.engine.api import Batched
from app.engine.core import EngineCore
from app.engine.errors import NotReady, SwapConflict, SwapInterrupted, SwapRefused
from app.engine.status import ShadowPlan, Status
from app.engine.swap import bundle_below
from app.settings import Settings
from app.telemetry.metrics import Telemetry
from model import Classifier, IntegrityError, ModelCard
from model.bundle import open_bundle
from tests.app.fakes import CARD, FakeEngine, random_pixels

PIXELS = np.stack([random_pixels(seed) for seed in range(8)])


def classifier(temperature: float = 2.0, engine: FakeEngine | None = None, **changes: Any) -> Classifier:
    """A fake one whose version depends on its temperature."""
    calibration = CARD.calibration.model_copy(update={"temperature": temperature})
    return Classifier(CARD.model_copy(update={"calibration": calibration, **changes}), engine or FakeEngine())


OTHER = classifier(3.0).card.version


def in_core(
    root: Path,
    test: Callable[[EngineCore, Telemetry], Coroutine[Any, Any, None]],
    load: Callable[[Path], Classifier] = lambda folder: classifier(3.0),
    *,
    first: Callable[[], Classifier] = classifier,
    **options: Any,
) -> None:
    """Run a test with an engine that serves `classifier()`, and an empty bundle `new` below the root."""

    async def main() -> None:
        telemetry = Telemetry()
        chosen = {"folders": {}, "on_failure": lambda: None, **options}
        core = EngineCore(
            Settings(weights_root=root),
            {CARD.name: [first]},
            telemetry,
            load_folder=lambda folder: [partial(load, folder)],
            **chosen,
        )
        await core.start()
        await core.models.wait_loaded()
        try:
            await test(core, telemetry)
        finally:
            await core.stop()

    (root / "new").mkdir()
    asyncio.run(asyncio.wait_for(main(), 60))


async def classify(core: EngineCore) -> list[Batched]:
    """Classify a request of eight images."""
    with core.admit(CARD.name, len(PIXELS)) as lease:
        return await lease.classify([pixels[None] for pixels in PIXELS])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


PLAN = ShadowPlan(share=0.5, images=40, seconds=60, agreement=0.98)


def engine_threads(earlier: Collection[threading.Thread]) -> int:
    """How many threads of engines there are now. Those of earlier tests may end at any time, so they do not count."""
    return sum(thread.name.startswith("engine") and thread not in earlier for thread in threading.enumerate())


def test_a_request_keeps_the_model_that_it_began_with(tmp_path: Path) -> None:
    engine = FakeEngine()

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        engine.block()
        request = asyncio.create_task(classify(core))
        await until(lambda: engine.views > 0)
        status = await core.swap(CARD.name, "new")
        assert (status.state, status.version, status.previous) == ("done", OTHER, CARD.version)
        assert core.catalog.get().card.version == OTHER
        engine.release()
        old, new = await request, await classify(core)
        assert old[0].prediction.probabilities.max() > new[0].prediction.probabilities.max(), "the temperatures differ"

    in_core(tmp_path, test, first=lambda: classifier(engine=engine))


@pytest.mark.parametrize("plan", [None, PLAN], ids=["at once", "after a comparison"])
def test_the_previous_model_is_released_when_the_swap_is_confirmed_and_its_last_request_has_ended(
    plan: ShadowPlan | None, tmp_path: Path
) -> None:
    earlier = threading.enumerate()
    networks: list[weakref.ref[Classifier]] = []

    def first() -> Classifier:
        found = classifier()
        networks.append(weakref.ref(found))
        return found

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        before = engine_threads(earlier)
        held = core.admit(CARD.name, len(PIXELS))
        lease = held.__enter__()
        await (compare(core, plan) if plan else core.swap(CARD.name, "new"))
        assert engine_threads(earlier) == before + 1
        await core.confirm(CARD.name)
        await asyncio.sleep(0.05)
        assert engine_threads(earlier) == before + 1, "a request holds it"
        await lease.classify([pixels[None] for pixels in PIXELS])
        gc.disable()
        try:
            held.__exit__(None, None, None)
            del held, lease
            await until(lambda: engine_threads(earlier) == before)
            await until(lambda: networks[0]() is None)  # no garbage collection is needed
        finally:
            gc.enable()
        await classify(core)
        with pytest.raises(SwapConflict, match="no previous version"):
            await core.roll_back(CARD.name)

    in_core(tmp_path, test, first=first)


def test_a_rollback_returns_to_the_model_that_is_still_loaded(tmp_path: Path) -> None:
    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        previous = core.models.get(CARD.name)
        await core.swap(CARD.name, "new")
        status = await core.roll_back(CARD.name)
        assert core.models.get(CARD.name) is previous
        assert (status.version, status.previous) == (CARD.version, None)
        assert len(loaded) == 1
        await classify(core)

    def load(folder: Path) -> Classifier:
        loaded.append(folder)
        return classifier(3.0)

    loaded: list[Path] = []
    in_core(tmp_path, test, load)


def test_no_rollback_returns_to_a_version_that_a_new_process_could_not_load(tmp_path: Path) -> None:
    folder = tmp_path / CARD.name
    commits: list[tuple[str, Path]] = []

    def write(card: ModelCard) -> None:
        (folder / model.CARD_FILE).write_text(card.model_dump_json(), encoding="utf-8")

    def load(found: Path) -> Classifier:
        return Classifier(model.read_card(found / model.CARD_FILE), FakeEngine())

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        write(classifier(3.0).card)
        assert (await core.swap(CARD.name, None)).previous == CARD.version
        with pytest.raises(SwapRefused, match=f"holds version {OTHER} now, not {CARD.version}"):
            await core.roll_back(CARD.name)
        assert core.catalog.get().card.version == OTHER
        write(CARD)
        await core.roll_back(CARD.name)
        assert core.catalog.get().card.version == CARD.version
        assert commits == [(CARD.name, folder)] * 2

    folder.mkdir()
    write(CARD)
    in_core(
        tmp_path,
        test,
        load,
        first=lambda: load(folder),
        folders={CARD.name: folder},
        on_commit=lambda name, found: commits.append((name, found)),
    )


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

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        serving, threads = core.models.get(CARD.name), engine_threads(earlier)
        with pytest.raises(SwapRefused, match=reason) as refusal:
            await core.swap(CARD.name, "new")
        assert "secret" not in str(refusal.value)
        assert core.models.get(CARD.name) is serving
        await classify(core)
        core.check_ready()
        status = core.swaps.status(CARD.name)
        assert status
        assert (status.state, status.reason) == ("refused", str(refusal.value))
        assert b'tenfold_swaps_total{model="fake-net",outcome="refused"} 1.0' in telemetry.exposition()
        await until(lambda: engine_threads(earlier) == threads)

    in_core(tmp_path, test, load)


def test_a_bundle_that_is_deleted_while_it_is_loaded_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    def load(folder: Path) -> Classifier:
        open_bundle(folder)
        shutil.rmtree(folder)
        return model.load(folder, device="cpu")

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        shutil.copytree(tiny_bundle, tmp_path / "new", dirs_exist_ok=True)
        with pytest.raises(SwapRefused):
            await core.swap(CARD.name, "new")
        await classify(core)

    in_core(tmp_path, test, load)


def test_a_failed_reload_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        caplog.clear()
        await core.reload()
        assert caplog.messages == [f"{CARD.name}: no swap (refused): the SHA-256 is wrong"]
        core.drain()
        caplog.clear()
        await core.reload()
        (message,) = caplog.messages
        assert message.startswith(f"the model {CARD.name} is not reloaded: the service is draining")

    in_core(tmp_path, test, raises(IntegrityError("the SHA-256 is wrong")), folders={CARD.name: tmp_path / "new"})


def test_of_two_swaps_at_once_the_second_is_a_conflict(tmp_path: Path) -> None:
    may_load = threading.Event()

    def load(folder: Path) -> Classifier:
        may_load.wait(20)
        return classifier(3.0)

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        first = asyncio.create_task(core.swap(CARD.name, "new"))
        await until(lambda: bool(core.swaps.status(CARD.name)))
        with pytest.raises(SwapConflict, match="in progress"):
            await core.swap(CARD.name, "new")
        may_load.set()
        assert (await first).state == "done"

    in_core(tmp_path, test, load)


def slow_loading() -> tuple[threading.Event, Callable[[Path], Classifier]]:
    """An event, and a load function that waits for it."""
    may_load = threading.Event()

    def load(folder: Path) -> Classifier:
        may_load.wait(20)
        return classifier(3.0)

    return may_load, load


def test_a_shutdown_interrupts_a_swap(tmp_path: Path) -> None:
    may_load, load = slow_loading()

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        swap = asyncio.create_task(core.swap(CARD.name, "new"))
        await until(lambda: core.swaps.status(CARD.name) is not None)
        core.drain()
        with pytest.raises(SwapInterrupted):
            await swap
        with pytest.raises(NotReady, match="draining"):
            await core.swap(CARD.name, "new")
        assert core.catalog.get().card.version == CARD.version
        may_load.set()

    in_core(tmp_path, test, load)


def test_a_swap_that_a_client_ends_leaves_the_old_weights_and_the_next_can_begin(tmp_path: Path) -> None:
    may_load, load = slow_loading()
    earlier = threading.enumerate()

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        before = engine_threads(earlier)
        with pytest.raises(SwapConflict, match="no swap of fake-net is in progress"):
            await core.end_swap(CARD.name)
        swap = asyncio.create_task(core.swap(CARD.name, "new"))
        await until(lambda: core.swaps.status(CARD.name) is not None)
        with pytest.raises(SwapConflict):
            await core.end_swap("another")
        status = await core.end_swap(CARD.name)
        assert (status.state, status.reason) == ("refused", "a client has ended the swap")
        with pytest.raises(SwapRefused, match="a client has ended"):
            await swap
        may_load.set()
        assert (await core.swap(CARD.name, "new")).state == "done"
        await until(lambda: engine_threads(earlier) == before + 1)

    in_core(tmp_path, test, load)


def test_a_comparison_that_a_client_ends_releases_the_new_weights(tmp_path: Path) -> None:
    earlier = threading.enumerate()

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        before = engine_threads(earlier)
        swap = asyncio.create_task(core.swap(CARD.name, "new", PLAN))
        await until(lambda: (found := core.swaps.status(CARD.name)) is not None and found.state == "comparing")
        assert (await core.end_swap(CARD.name)).state == "refused"
        with pytest.raises(SwapRefused):
            await swap
        await until(lambda: engine_threads(earlier) == before)
        assert core.catalog.get().card.version == CARD.version

    in_core(tmp_path, test)


def test_a_swap_whose_client_has_left_is_completed(tmp_path: Path) -> None:
    may_load, load = slow_loading()

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        swap = asyncio.create_task(core.swap(CARD.name, "new"))
        await until(lambda: core.swaps.status(CARD.name) is not None)
        swap.cancel()
        await asyncio.wait([swap])
        may_load.set()
        await until(lambda: core.catalog.get().card.version == OTHER)

    in_core(tmp_path, test, load)


def test_weights_without_a_folder_cannot_be_loaded_again(tmp_path: Path) -> None:
    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        with pytest.raises(SwapRefused, match="was not loaded from a folder"):
            await core.swap(CARD.name, None)

    in_core(tmp_path, test)


async def compare(core: EngineCore, plan: ShadowPlan, weights: str = "new") -> Status:
    """Swap with a comparison, under requests that continue until it ends."""
    swap = asyncio.create_task(core.swap(CARD.name, weights, plan))
    while not swap.done():
        await classify(core)
        await asyncio.sleep(0.005)
    return await swap


def test_weights_that_agree_on_live_images_are_served(tmp_path: Path) -> None:
    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        status = await compare(core, PLAN)
        found = status.comparison
        assert found
        assert status.version == OTHER
        assert found.images >= 40
        assert found.agreement == 1
        assert found.confidence[0] > found.confidence[1], "a higher temperature lowers the confidence"
        assert found.accepted[0] == found.accepted[1]
        text = telemetry.exposition().decode()
        assert 'tenfold_shadow_images_total{model="fake-net",outcome="agreed"}' in text
        assert 'tenfold_shadow_confidence_sum{model="fake-net",weights="candidate"}' in text
        assert len(core.models.get(CARD.name).batcher.observers) == 1, "that of the window"

    in_core(tmp_path, test)


def test_weights_that_disagree_on_live_images_are_refused(tmp_path: Path) -> None:
    class Reversed(FakeEngine):
        def run(self, pixels: Any) -> Any:
            out = super().run(pixels)
            return out._replace(logits=out.logits[:, ::-1].copy())

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        serving = core.models.get(CARD.name)
        with pytest.raises(SwapRefused, match="agree on"):
            await compare(core, PLAN)
        assert core.models.get(CARD.name) is serving
        assert len(serving.batcher.observers) == 1, "that of the window"

    in_core(tmp_path, test, lambda folder: classifier(3.0, Reversed()))


def test_weights_that_fail_on_live_images_are_refused_and_no_request_notices(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.failure = RuntimeError("no kernels")

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        with pytest.raises(SwapRefused, match=r"agree on 0\.00%"):
            await compare(core, PLAN)
        core.check_ready()

    in_core(tmp_path, test, lambda folder: classifier(3.0, engine))


def test_weights_that_are_slow_delay_no_request_and_copies_are_dropped(tmp_path: Path) -> None:
    engine = FakeEngine()

    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        plan = PLAN.model_copy(update={"share": 1.0, "seconds": 0.5})
        engine.block()
        with pytest.raises(SwapRefused, match="only 0 of 40 images"):
            await compare(core, plan)
        status = core.swaps.status(CARD.name)
        assert status
        assert status.comparison
        assert status.comparison.dropped > 0
        engine.release()

    in_core(tmp_path, test, lambda folder: classifier(3.0, engine))


def test_weights_with_another_test_transform_cannot_be_compared(tmp_path: Path) -> None:
    async def test(core: EngineCore, telemetry: Telemetry) -> None:
        with pytest.raises(SwapRefused, match="swap without shadow"):
            await core.swap(CARD.name, "new", PLAN)
        assert (await core.swap(CARD.name, "new")).state == "done"

    spec = CARD.input.model_copy(update={"resize": 64, "crop": 64})
    in_core(tmp_path, test, lambda folder: classifier(3.0, input=spec))


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
