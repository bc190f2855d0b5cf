import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.serving.admission import Admission, Limits
from app.serving.batching import Batcher
from app.serving.errors import NotAlive
from app.telemetry.metrics import Telemetry
from model import EngineError, Prediction
from model.calibration import OutOfDistributionScore
from model.views import view_weights
from tests.app.fakes import CARD, FakeEngine, fake_classifier, random_pixels


@asynccontextmanager
async def batching(
    engine: FakeEngine,
    classify: Callable[[Sequence[NDArray[np.uint8]]], Sequence[Prediction]] | None = None,
    **limits: Any,
) -> AsyncIterator[Batcher]:
    """A batcher of the fake classifier, stopped afterwards."""
    with ThreadPoolExecutor(1) as thread:
        admission = Admission("a", Limits(["a"], max_images=100, max_uploads=100, max_held_bytes=10**6))
        chosen = {
            "max_batch": 32, "stall_timeout": 60.0, "admission": admission, "telemetry": Telemetry(), **limits
        }  # fmt: skip
        batcher = Batcher("a", classify or fake_classifier(engine).classify, thread, **chosen)
        try:
            yield batcher
        finally:
            engine.release()
            await batcher.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def blocked(engine: FakeEngine, batcher: Batcher) -> asyncio.Task[Any]:
    """An image that keeps the engine busy until `engine.release`."""
    engine.block()
    task = asyncio.create_task(batcher.classify(random_pixels(999)[None]))
    await until(lambda: engine.views == 1)
    return task


def queue(batcher: Batcher, seeds: range) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(batcher.classify(random_pixels(seed)[None])) for seed in seeds]


def views_of(seed: int, count: int) -> NDArray[np.uint8]:
    """An image with different views, uint8[count, 32, 32, 3]."""
    return np.stack([random_pixels(1000 * seed + view) for view in range(count)])


def queue_views(batcher: Batcher, *counts: int) -> list[asyncio.Task[Any]]:
    """Queue images with these numbers of views. The first has seed 1."""
    return [asyncio.create_task(batcher.classify(views_of(seed, count))) for seed, count in enumerate(counts, start=1)]


def test_a_single_image_starts_at_once() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            result = await batcher.classify(random_pixels(1)[None])
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


def test_images_run_in_the_order_of_the_queue() -> None:
    async def main() -> None:
        engine = FakeEngine()
        right = fake_classifier(engine).classify
        ran: list[NDArray[np.uint8]] = []

        def classify(images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            ran.extend(images)
            return right(images)

        counts = (3, 2, 5, 1, 1, 4, 1)
        async with batching(engine, classify, max_batch=4) as batcher:
            first = await blocked(engine, batcher)
            others = queue_views(batcher, *counts)
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *others)
        assert len(ran) == 1 + len(counts)
        for seed, (count, image) in enumerate(zip(counts, ran[1:], strict=True), start=1):
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
            late = asyncio.create_task(batcher.classify(random_pixels(1)[None], deadline=time.monotonic()))
            early = asyncio.create_task(batcher.classify(random_pixels(2)[None], deadline=time.monotonic() + 60))
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
            await batcher.classify(random_pixels(5)[None])
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
            await batcher.classify(random_pixels(5)[None])
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
            assert (await batcher.classify(random_pixels(3)[None])).prediction
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
                await batcher.classify(random_pixels(1)[None])
            engine.surplus = 0
            await batcher.classify(random_pixels(1)[None])

    asyncio.run(main())


def test_a_wrong_number_of_predictions_is_an_error_of_that_batch() -> None:
    async def main() -> None:
        engine = FakeEngine()
        right = fake_classifier(engine).classify
        short = True

        def classify(images: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            return right(images)[: -1 if short else None]

        async with batching(engine, classify) as batcher:
            with pytest.raises(ValueError, match="shorter"):
                await batcher.classify(random_pixels(1)[None])
            short = False
            await batcher.classify(random_pixels(1)[None])

    asyncio.run(main())


def test_a_stalled_forward_pass_is_not_alive_until_it_ends() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, stall_timeout=0.1) as batcher:
            batcher.check()
            first = await blocked(engine, batcher)
            batcher.check()
            await asyncio.sleep(0.15)
            with pytest.raises(NotAlive, match=r"more than 0\.1 s"):
                batcher.check()
            engine.release()
            await first
            batcher.check()

    asyncio.run(main())


def test_idle_time_is_not_a_stall() -> None:
    async def main() -> None:
        async with batching(FakeEngine(), stall_timeout=0.05) as batcher:
            await batcher.classify(random_pixels(1)[None])
            await asyncio.sleep(0.1)
            batcher.check()

    asyncio.run(main())


def test_a_batching_task_that_ended_is_not_alive() -> None:
    async def main() -> None:
        async with batching(FakeEngine()) as batcher:
            await batcher.stop()
            with pytest.raises(NotAlive, match="has ended"):
                batcher.check()

    asyncio.run(main())
