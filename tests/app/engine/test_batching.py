import asyncio
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.engine.admission import Admission, SharedLimit
from app.engine.api import Batched
from app.engine.batching import Batcher
from app.engine.errors import NotAlive
from app.telemetry.metrics import Telemetry
from model import Classifier, EngineError, Passes, Prediction
from model.calibration import OutOfDistributionScore
from model.views import view_weights
from tests.app.fakes import CARD, FakeEngine, fake_classifier, random_pixels


@asynccontextmanager
async def batching(engine: FakeEngine, *others: FakeEngine, **options: Any) -> AsyncIterator[Batcher]:
    """A batcher of fake classifiers, each with a lane, stopped afterwards."""
    async with batching_of(*map(fake_classifier, (engine, *others)), **options) as batcher:
        try:
            yield batcher
        finally:
            for each in (engine, *others):
                each.release()


@asynccontextmanager
async def batching_of(*classifiers: Classifier, **options: Any) -> AsyncIterator[Batcher]:
    admission = Admission("a", SharedLimit(100, ["a"]))
    chosen = {"max_batch": 32, "stall_timeout": 60.0, "admission": admission, "telemetry": Telemetry(), **options}
    batcher = Batcher([(each, ThreadPoolExecutor(1)) for each in classifiers], **chosen)
    try:
        yield batcher
    finally:
        batcher.stop()


async def classify(batcher: Batcher, pixels: NDArray[np.uint8], **options: Any) -> Batched:
    """Classify one image."""
    (found,) = await batcher.submit([pixels], **options)
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def blocked(engine: FakeEngine, batcher: Batcher) -> asyncio.Task[Any]:
    """An image that keeps the engine busy until `engine.release`."""
    engine.block()
    task = asyncio.create_task(classify(batcher, random_pixels(999)[None]))
    await until(lambda: engine.views == 1)
    return task


def queue(batcher: Batcher, seeds: range) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(classify(batcher, random_pixels(seed)[None])) for seed in seeds]


def views_of(seed: int, count: int) -> NDArray[np.uint8]:
    """An image with different views, uint8[count, 32, 32, 3]."""
    return np.stack([random_pixels(1000 * seed + view) for view in range(count)])


def queue_views(batcher: Batcher, *counts: int) -> list[asyncio.Task[Any]]:
    """Queue images with these numbers of views. The first has seed 1."""
    return [asyncio.create_task(classify(batcher, views_of(seed, count))) for seed, count in enumerate(counts, start=1)]


def test_a_single_image_starts_at_once() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            result = await classify(batcher, random_pixels(1)[None])
        (expected,) = fake_classifier(engine).classify([random_pixels(1)[None]])
        np.testing.assert_array_equal(result.prediction.probabilities, expected.probabilities)
        assert engine.batches[0] == 1

    asyncio.run(main())


def test_images_queued_while_the_engine_is_busy_form_the_next_batch() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await blocked(engine, batcher)
            others = queue(batcher, range(7))
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *others)
        assert engine.batches == [1, 7]

    asyncio.run(main())


def test_a_batch_is_never_larger_than_max_batch() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=3) as batcher:
            first = await blocked(engine, batcher)
            others = queue(batcher, range(8))
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *others)
        assert engine.batches == [1, 3, 3, 2]

    asyncio.run(main())


def test_every_image_of_a_batch_gets_its_own_prediction() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=8) as batcher:
            first = await blocked(engine, batcher)
            others = queue(batcher, range(50))
            await asyncio.sleep(0)
            engine.release()
            results = await asyncio.gather(*others)
            await first
        for seed, result in enumerate(results):
            (expected,) = fake_classifier(FakeEngine()).classify([random_pixels(seed)[None]])
            np.testing.assert_allclose(result.prediction.probabilities, expected.probabilities, rtol=1e-5, atol=1e-7)

    asyncio.run(main())


def test_images_with_different_numbers_of_views_share_a_batch() -> None:
    counts = (3, 1, 9, 1, 2)

    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await blocked(engine, batcher)
            others = queue_views(batcher, *counts)
            await asyncio.sleep(0)
            engine.release()
            results = await asyncio.gather(*others)
            await first
        # The first two views of each image, then the others.
        assert engine.batches == [1, 2 + 1 + 2 + 1 + 2, 1 + 7]
        alone = fake_classifier(FakeEngine())
        for seed, (count, result) in enumerate(zip(counts, results, strict=True), start=1):
            by_view = alone.classify([view[None] for view in views_of(seed, count)])
            weights = view_weights(count)
            product = np.exp(weights @ np.log([prediction.probabilities for prediction in by_view]))
            np.testing.assert_allclose(result.prediction.probabilities, product / product.sum(), rtol=1e-4, atol=1e-7)
            out = FakeEngine().run(views_of(seed, count))
            score = OutOfDistributionScore(CARD.out_of_distribution)
            (share,) = score.fractions((weights @ score.of_views(out.logits, out.features))[None])
            assert result.prediction.in_distribution == pytest.approx(share, rel=1e-5)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("max_batch", "counts", "batches"),
    [
        (4, (2, 2, 1), [4, 1]),
        (4, (3, 2, 2), [4, 1, 2]),
        (4, (1, 5, 1, 1), [4, 3, 1]),
        (4, (1, 1, 1, 2), [3, 2]),
        (4, (5, 5, 5), [4, 4, 2, 2, 3]),
        (4, (6, 9, 4), [4, 4, 4, 3, 2, 2]),
        (1, (1, 1, 5), [1, 1, 2, 3]),
        (2, (5, 1, 1), [2, 3, 2]),
    ],
)
def test_max_batch_limits_the_views_of_each_forward_pass(
    max_batch: int, counts: tuple[int, ...], batches: list[int]
) -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=max_batch) as batcher:
            first = await blocked(engine, batcher)
            others = queue_views(batcher, *counts)
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *others)
        assert engine.batches == [1, *batches]

    asyncio.run(main())


class Recording(Classifier):
    """Records its images. While `short`, it returns a prediction too few."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(CARD, engine)
        self.images: list[NDArray[np.uint8]] = []
        self.short = False

    def passes(self, images: Sequence[NDArray[np.uint8]]) -> Passes:
        self.images.extend(images)
        return self._shortened(super().passes(images))

    def _shortened(self, passes: Passes) -> Passes:
        predictions = yield from passes
        return predictions[: -1 if self.short else None]


def test_images_run_in_the_order_of_the_queue() -> None:
    async def main() -> None:
        engine = FakeEngine()
        classifier = Recording(engine)
        counts = (3, 2, 5, 1, 1, 4, 1)
        async with batching_of(classifier, max_batch=4) as batcher:
            first = await blocked(engine, batcher)
            others = queue_views(batcher, *counts)
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *others)
        assert len(classifier.images) == 1 + len(counts)
        for seed, (count, image) in enumerate(zip(counts, classifier.images[1:], strict=True), start=1):
            np.testing.assert_array_equal(image, views_of(seed, count))

    asyncio.run(main())


def test_the_seconds_in_the_queue_and_of_the_batch_are_reported() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            began = time.monotonic()
            first = await blocked(engine, batcher)
            (second,) = queue(batcher, range(1))
            await asyncio.sleep(0.2)
            engine.release()
            one, other = await asyncio.gather(first, second)
            elapsed = time.monotonic() - began
        assert one.inference >= 0.2
        assert other.queued >= 0.2
        for result in (one, other):
            assert 0 <= result.queued + result.inference <= elapsed

    asyncio.run(main())


def test_a_cancelled_image_is_not_run() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await blocked(engine, batcher)
            others = queue(batcher, range(4))
            await asyncio.sleep(0)
            others[1].cancel()
            others[2].cancel()
            engine.release()
            await asyncio.gather(first, others[0], others[3])
        assert engine.batches == [1, 2]

    asyncio.run(main())


def test_an_image_past_its_deadline_is_not_run() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await blocked(engine, batcher)
            late = asyncio.create_task(classify(batcher, random_pixels(1)[None], deadline=time.monotonic()))
            early = asyncio.create_task(classify(batcher, random_pixels(2)[None], deadline=time.monotonic() + 60))
            await asyncio.sleep(0.01)
            engine.release()
            await asyncio.gather(first, early)
            assert engine.batches == [1, 1]
            assert not late.done(), "the timeout of the request ends the wait"
            late.cancel()

    asyncio.run(main())


def test_a_queue_of_cancelled_images_runs_no_batch() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await blocked(engine, batcher)
            others = queue(batcher, range(4))
            await asyncio.sleep(0)
            for task in others:
                task.cancel()
            engine.release()
            await first
            await classify(batcher, random_pixels(5)[None])
        assert engine.batches == [1, 1]

    asyncio.run(main())


@pytest.mark.parametrize("cancelled", [{0}, {1}, {3}, {0, 2}, {1, 2, 3}], ids=str)
def test_a_cancelled_image_takes_no_room_in_a_batch(cancelled: set[int]) -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=4) as batcher:
            first = await blocked(engine, batcher)
            others = queue_views(batcher, *(4 if number in cancelled else 1 for number in range(4)))
            await asyncio.sleep(0)
            for number in cancelled:
                others[number].cancel()
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *(task for number, task in enumerate(others) if number not in cancelled))
            await classify(batcher, random_pixels(5)[None])
        assert engine.batches == [1, 4 - len(cancelled), 1]

    asyncio.run(main())


def test_cancelling_an_image_of_a_running_batch_does_not_affect_the_others() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await blocked(engine, batcher)
            others = queue(batcher, range(3))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.sleep(0)
            engine.release()
            assert len(await asyncio.gather(*others)) == 3
            batcher.check()

    asyncio.run(main())


def test_a_failed_forward_pass_fails_only_its_batch() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=2) as batcher:
            engine.failure = RuntimeError("out of memory")
            first = await blocked(engine, batcher)
            others = queue(batcher, range(2))
            await asyncio.sleep(0)
            engine.release()
            outcomes = await asyncio.gather(first, *others, return_exceptions=True)
            assert [str(outcome) for outcome in outcomes] == ["out of memory"] * 3
            engine.failure = None
            assert (await classify(batcher, random_pixels(3)[None])).prediction
            batcher.check()
        assert engine.batches == [1, 2, 1]

    asyncio.run(main())


@pytest.mark.parametrize("surplus", [1, 5])
def test_a_wrong_number_of_logits_is_an_error_of_that_batch(surplus: int) -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            engine.surplus = surplus
            with pytest.raises(EngineError, match="for 1 views"):
                await classify(batcher, random_pixels(1)[None])
            engine.surplus = 0
            await classify(batcher, random_pixels(1)[None])

    asyncio.run(main())


def test_a_wrong_number_of_predictions_is_an_error_of_that_batch() -> None:
    async def main() -> None:
        classifier = Recording(FakeEngine())
        async with batching_of(classifier) as batcher:
            classifier.short = True
            with pytest.raises(ValueError, match="shorter"):
                await classify(batcher, random_pixels(1)[None])
            classifier.short = False
            await classify(batcher, random_pixels(1)[None])

    asyncio.run(main())


def test_a_stalled_forward_pass_is_not_alive_until_it_ends() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, stall_timeout=0.5) as batcher:
            batcher.check()
            first = await blocked(engine, batcher)
            batcher.check()
            await asyncio.sleep(0.55)
            with pytest.raises(NotAlive, match=r"more than 0\.5 s"):
                batcher.check()
            engine.release()
            await first
            batcher.check()

    asyncio.run(main())


def test_idle_time_is_not_a_stall() -> None:
    async def main() -> None:
        async with batching(FakeEngine(), stall_timeout=0.05) as batcher:
            await classify(batcher, random_pixels(1)[None])
            await asyncio.sleep(0.1)
            batcher.check()

    asyncio.run(main())


def test_a_thread_that_ended_is_not_alive() -> None:
    async def main() -> None:
        engine, other = FakeEngine(), FakeEngine()
        async with batching(engine, other) as batcher:
            engine.failure = other.failure = SystemExit()
            call = batcher.submit([random_pixels(1)[None]])
            async with asyncio.timeout(10):
                while not not_alive(batcher, "the thread of the engine has ended"):
                    await asyncio.sleep(0.001)
            call.cancel()

    asyncio.run(main())


def not_alive(batcher: Batcher, reason: str) -> bool:
    """Whether the check fails for this reason."""
    try:
        batcher.check()
    except NotAlive as error:
        return reason in str(error)
    return False


def test_an_engine_that_fails_three_times_in_succession_is_not_alive() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            for failures in ((True, True, False), (True, True, True)):
                batcher.check()
                for fails in failures:
                    engine.failure = RuntimeError("out of memory") if fails else None
                    await asyncio.wait([batcher.submit([random_pixels(1)[None]])])
            with pytest.raises(NotAlive, match="3 batches in succession have failed"):
                batcher.check()

    asyncio.run(main())


def test_the_images_of_a_call_are_returned_in_order_whatever_their_batches() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, FakeEngine(), max_batch=3) as batcher:
            found = await batcher.submit([views_of(seed, 1 + seed % 3) for seed in range(20)])
        alone = fake_classifier(FakeEngine())
        for seed, each in enumerate(found):
            (expected,) = alone.classify([views_of(seed, 1 + seed % 3)])
            np.testing.assert_allclose(each.prediction.probabilities, expected.probabilities, rtol=1e-5, atol=1e-7)

    asyncio.run(main())


def test_the_failure_of_one_batch_is_that_of_the_call() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=2) as batcher:
            engine.failure = RuntimeError("out of memory")
            with pytest.raises(RuntimeError, match="out of memory"):
                await batcher.submit([random_pixels(seed)[None] for seed in range(5)])
            engine.failure = None
            assert len(await batcher.submit([random_pixels(1)[None]] * 5)) == 5

    asyncio.run(main())


def test_each_lane_runs_a_batch_of_its_own() -> None:
    async def main() -> None:
        engines = FakeEngine(), FakeEngine()
        async with batching(*engines, max_batch=4) as batcher:
            for engine in engines:
                engine.block()
            call = batcher.submit([random_pixels(seed)[None] for seed in range(8)])
            await until(lambda: [engine.batches for engine in engines] == [[4], [4]])
            for engine in engines:
                engine.release()
            assert len(await call) == 8

    asyncio.run(main())


def test_a_stalled_lane_is_not_alive_although_the_others_work() -> None:
    async def main() -> None:
        engines = FakeEngine(), FakeEngine()
        async with batching(*engines, stall_timeout=0.3) as batcher:
            for engine in engines:
                engine.block()
            stalled = batcher.submit([random_pixels(1)[None]])
            await until(lambda: sum(engine.views for engine in engines) == 1)
            (working,) = [engine for engine in engines if not engine.views]
            working.release()
            await classify(batcher, random_pixels(2)[None])
            await asyncio.sleep(0.35)
            assert not_alive(batcher, "more than 0.3 s")
            for engine in engines:
                engine.release()
            await stalled
            batcher.check()

    asyncio.run(main())


def test_observers_see_each_image_after_its_result() -> None:
    async def main() -> None:
        seen: list[tuple[NDArray[np.uint8], Prediction, bool]] = []
        async with batching(FakeEngine()) as batcher:
            call = batcher.submit([views_of(seed, seed) for seed in (1, 2, 3)])
            batcher.observers.append(lambda pixels, prediction: seen.append((pixels, prediction, call.done())))
            found = await call
            await until(lambda: len(seen) == 3)
        for seed, ((pixels, prediction, was_done), result) in enumerate(zip(seen, found, strict=True), start=1):
            np.testing.assert_array_equal(pixels, views_of(seed, seed))
            assert prediction is result.prediction
            assert was_done

    asyncio.run(main())


def test_a_function_runs_between_two_batches_with_the_classifier_in_its_thread() -> None:
    async def main() -> None:
        engine = FakeEngine()
        classifier = Recording(engine)
        async with batching_of(classifier, max_batch=1) as batcher:
            first = await blocked(engine, batcher)
            others = queue(batcher, range(3))
            ran: list[tuple[int, int]] = []

            def function(given: Classifier) -> int:
                assert given is classifier
                ran.append((len(engine.batches), threading.get_ident()))
                return len(ran)

            calls = [asyncio.create_task(batcher.in_engine_thread(function)) for _ in range(3)]
            cancelled = asyncio.create_task(batcher.in_engine_thread(function))
            await asyncio.sleep(0)
            cancelled.cancel()
            await asyncio.sleep(0.01)
            engine.release()
            assert await asyncio.gather(*calls) == [1, 2, 3]
            await asyncio.gather(first, *others)
        assert [batches for batches, _ in ran] == [1, 2, 3], "an image between two functions"
        assert len({thread for _, thread in ran}) == 1
        assert ran[0][1] != threading.get_ident()

    asyncio.run(main())


def test_a_function_that_fails_raises_and_leaves_the_engine_working() -> None:
    async def main() -> None:
        async with batching(FakeEngine()) as batcher:
            with pytest.raises(ZeroDivisionError):
                await batcher.in_engine_thread(lambda classifier: 1 // 0)
            await classify(batcher, random_pixels(1)[None])
            batcher.check()

    asyncio.run(main())


def test_a_batcher_that_is_stopped_keeps_no_thread_and_no_network() -> None:
    async def main() -> None:
        earlier = set(threading.enumerate())
        classifiers = [fake_classifier(FakeEngine()) for _ in range(2)]
        networks = [weakref.ref(each) for each in classifiers]
        gc.disable()
        try:
            async with batching_of(*classifiers) as batcher:
                classifiers.clear()
                await batcher.submit([views_of(seed, 3) for seed in range(20)])
                await batcher.in_engine_thread(lambda classifier: classifier.card.name)
                assert set(threading.enumerate()) > earlier
            await until(lambda: set(threading.enumerate()) <= earlier)
            await until(lambda: [network() for network in networks] == [None, None])
        finally:
            gc.enable()

    asyncio.run(main())


def test_an_idle_batcher_keeps_no_image() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.has_maps = False
        async with batching(engine) as batcher:
            pixels = random_pixels(1)[None].copy()
            image = weakref.ref(pixels)
            await classify(batcher, pixels)
            del pixels
            await until(lambda: image() is None)

    asyncio.run(main())
