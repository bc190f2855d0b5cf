import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from app.serving.batching import Batcher
from app.serving.errors import NotAlive, QueueFull
from app.telemetry.metrics import Telemetry
from model import EngineError, Prediction
from model.calibration import class_mean_cosine, in_distribution
from tests.app.fakes import CARD, FakeEngine, fake_classifier, random_pixels


@asynccontextmanager
async def batching(
    engine: FakeEngine,
    classify: Callable[[Sequence[NDArray[np.uint8]]], Sequence[Prediction]] | None = None,
    **limits: Any,
) -> AsyncIterator[Batcher]:
    """A batcher of the fake classifier, stopped afterwards."""
    with ThreadPoolExecutor(1) as thread:
        chosen = {"max_batch": 32, "queue_size": 100, "stall_timeout": 60.0, "telemetry": Telemetry(), **limits}
        batcher = Batcher(classify or fake_classifier(engine).classify, thread, **chosen)
        try:
            yield batcher
        finally:
            engine.release()
            await batcher.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def held_up(engine: FakeEngine, batcher: Batcher) -> asyncio.Task[Any]:
    """A picture that keeps the engine busy until it is released."""
    engine.block()
    task = asyncio.create_task(batcher.classify(random_pixels(999)[None]))
    await until(lambda: engine.views == 1)
    return task


def queue(batcher: Batcher, seeds: range) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(batcher.classify(random_pixels(seed)[None])) for seed in seeds]


def views_of(seed: int, count: int) -> NDArray[np.uint8]:
    """A picture of so many views, no two alike, uint8[count, 32, 32, 3]."""
    return np.stack([random_pixels(1000 * seed + view) for view in range(count)])


def queue_views(batcher: Batcher, *counts: int) -> list[asyncio.Task[Any]]:
    """Images of so many views; the first has seed 1."""
    return [asyncio.create_task(batcher.classify(views_of(seed, count))) for seed, count in enumerate(counts, start=1)]


def test_one_picture_starts_at_once_alone() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            answer = await batcher.classify(random_pixels(1)[None])
        (expected,) = fake_classifier(engine).classify([random_pixels(1)[None]])
        np.testing.assert_array_equal(answer.prediction.probabilities, expected.probabilities)
        assert engine.batches[0] == 1

    asyncio.run(main())


def test_what_queued_while_the_engine_was_busy_is_the_next_batch() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await held_up(engine, batcher)
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
            first = await held_up(engine, batcher)
            others = queue(batcher, range(8))
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *others)
        assert engine.batches == [1, 3, 3, 2]

    asyncio.run(main())


def test_every_picture_of_a_batch_gets_its_own_answer() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=8) as batcher:
            first = await held_up(engine, batcher)
            others = queue(batcher, range(50))
            await asyncio.sleep(0)
            engine.release()
            answers = await asyncio.gather(*others)
            await first
        for seed, answer in enumerate(answers):
            (expected,) = fake_classifier(FakeEngine()).classify([random_pixels(seed)[None]])
            np.testing.assert_allclose(answer.prediction.probabilities, expected.probabilities, rtol=1e-5, atol=1e-7)

    asyncio.run(main())


def test_pictures_of_different_numbers_of_views_share_a_batch_and_get_their_own_answers() -> None:
    counts = (3, 1, 9, 1, 2)

    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await held_up(engine, batcher)
            others = queue_views(batcher, *counts)
            await asyncio.sleep(0)
            engine.release()
            answers = await asyncio.gather(*others)
            await first
        assert engine.batches == [1, sum(counts)]
        alone = fake_classifier(FakeEngine())
        for seed, (count, answer) in enumerate(zip(counts, answers, strict=True), start=1):
            by_view = alone.classify([view[None] for view in views_of(seed, count)])
            expected = np.mean([prediction.probabilities for prediction in by_view], axis=0)
            np.testing.assert_allclose(answer.prediction.probabilities, expected, rtol=1e-5, atol=1e-7)
            out = FakeEngine().run(views_of(seed, count))
            score = class_mean_cosine(out.features, CARD.out_of_distribution).mean(keepdims=True)
            (share,) = in_distribution(score, CARD.out_of_distribution)
            assert answer.prediction.in_distribution == pytest.approx(share, rel=1e-5)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("counts", "batches"),
    [
        ((2, 2, 1), [4, 1]),
        ((3, 2, 2), [3, 4]),
        ((6, 1, 1), [6, 2]),
        ((1, 6, 1), [1, 6, 1]),
        ((6, 9, 4), [6, 9, 4]),
    ],
    ids=["filled up", "what does not fit is next", "more than a batch", "more than a batch between", "each alone"],
)
def test_max_batch_counts_views_and_a_picture_of_more_runs_alone(counts: tuple[int, ...], batches: list[int]) -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=4) as batcher:
            first = await held_up(engine, batcher)
            others = queue_views(batcher, *counts)
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *others)
        assert engine.batches == [1, *batches]

    asyncio.run(main())


def test_pictures_run_in_the_order_in_which_they_queued() -> None:
    async def main() -> None:
        engine = FakeEngine()
        right = fake_classifier(engine).classify
        ran: list[NDArray[np.uint8]] = []

        def classify(pictures: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            ran.extend(pictures)
            return right(pictures)

        counts = (3, 2, 5, 1, 1, 4, 1)
        async with batching(engine, classify, max_batch=4) as batcher:
            first = await held_up(engine, batcher)
            others = queue_views(batcher, *counts)
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *others)
        assert len(ran) == 1 + len(counts)
        for seed, (count, picture) in enumerate(zip(counts, ran[1:], strict=True), start=1):
            np.testing.assert_array_equal(picture, views_of(seed, count))

    asyncio.run(main())


def test_the_seconds_waited_and_computed_are_told() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            began = time.monotonic()
            first = await held_up(engine, batcher)
            (second,) = queue(batcher, range(1))
            await asyncio.sleep(0.2)
            engine.release()
            one, other = await asyncio.gather(first, second)
            elapsed = time.monotonic() - began
        assert one.inference >= 0.2
        assert other.queued >= 0.2
        for answer in (one, other):
            assert 0 <= answer.queued + answer.inference <= elapsed

    asyncio.run(main())


def test_a_caller_who_left_costs_no_inference() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await held_up(engine, batcher)
            others = queue(batcher, range(4))
            await asyncio.sleep(0)
            others[1].cancel()
            others[2].cancel()
            engine.release()
            await asyncio.gather(first, others[0], others[3])
        assert engine.batches == [1, 2]

    asyncio.run(main())


def test_a_picture_whose_deadline_has_passed_costs_no_inference() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await held_up(engine, batcher)
            late = asyncio.create_task(batcher.classify(random_pixels(1)[None], deadline=time.monotonic()))
            early = asyncio.create_task(batcher.classify(random_pixels(2)[None], deadline=time.monotonic() + 60))
            await asyncio.sleep(0.01)
            engine.release()
            await asyncio.gather(first, early)
            assert engine.batches == [1, 1]
            assert not late.done(), "its own timeout ends the wait"
            late.cancel()

    asyncio.run(main())


def test_a_queue_of_leavers_runs_no_batch_and_the_batcher_goes_on() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await held_up(engine, batcher)
            others = queue(batcher, range(4))
            await asyncio.sleep(0)
            for task in others:
                task.cancel()
            engine.release()
            await first
            await batcher.classify(random_pixels(5)[None])
        assert engine.batches == [1, 1]

    asyncio.run(main())


@pytest.mark.parametrize("leavers", [{0}, {1}, {3}, {0, 2}, {1, 2, 3}], ids=str)
def test_who_has_left_takes_no_room_in_a_batch(leavers: set[int]) -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=4) as batcher:
            first = await held_up(engine, batcher)
            others = queue_views(batcher, *(4 if number in leavers else 1 for number in range(4)))
            await asyncio.sleep(0)
            for number in leavers:
                others[number].cancel()
            await asyncio.sleep(0)
            engine.release()
            await asyncio.gather(first, *(task for number, task in enumerate(others) if number not in leavers))
            await batcher.classify(random_pixels(5)[None])
        assert engine.batches == [1, 4 - len(leavers), 1]

    asyncio.run(main())


def test_leaving_in_the_middle_of_a_batch_disturbs_nobody_else() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine) as batcher:
            first = await held_up(engine, batcher)
            others = queue(batcher, range(3))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.sleep(0)
            engine.release()
            assert len(await asyncio.gather(*others)) == 3
            batcher.check()

    asyncio.run(main())


def test_admission_is_bounded_in_pictures_over_all_callers() -> None:
    async def main() -> None:
        async with batching(FakeEngine(), queue_size=10) as batcher:
            with batcher.admit(4), batcher.admit(5):
                assert batcher.admitted == 9
                with pytest.raises(QueueFull), batcher.admit(2):
                    pass
                assert batcher.admitted == 9
                with batcher.admit(1):
                    assert batcher.admitted == 10
            assert batcher.admitted == 0

    asyncio.run(main())


def test_room_is_given_back_after_an_error_and_a_cancellation() -> None:
    async def main() -> None:
        async with batching(FakeEngine(), queue_size=10) as batcher:
            with pytest.raises(RuntimeError), batcher.admit(10):
                raise RuntimeError

            async def hold() -> None:
                with batcher.admit(10):
                    await asyncio.sleep(60)

            task = asyncio.create_task(hold())
            await asyncio.sleep(0)
            assert batcher.admitted == 10
            task.cancel()
            await asyncio.wait([task])
            assert batcher.admitted == 0

    asyncio.run(main())


def test_a_failing_pass_fails_its_own_batch_alone() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, max_batch=2) as batcher:
            engine.failure = RuntimeError("out of memory")
            first = await held_up(engine, batcher)
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

        def classify(pictures: Sequence[NDArray[np.uint8]]) -> list[Prediction]:
            return right(pictures)[: -1 if short else None]

        async with batching(engine, classify) as batcher:
            with pytest.raises(ValueError, match="shorter"):
                await batcher.classify(random_pixels(1)[None])
            short = False
            await batcher.classify(random_pixels(1)[None])

    asyncio.run(main())


def test_retry_after_is_one_second_a_picture_while_no_rate_is_known() -> None:
    async def main() -> None:
        async with batching(FakeEngine(), queue_size=7) as batcher:
            with batcher.admit(7), pytest.raises(QueueFull) as caught, batcher.admit(1):
                pass
            assert caught.value.retry_after == 7

    asyncio.run(main())


def test_retry_after_follows_the_measured_rate() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.seconds = 0.02
        async with batching(engine, max_batch=2, queue_size=40) as batcher:
            await asyncio.gather(*queue(batcher, range(20)))  # at most 100 a second
            with batcher.admit(40), pytest.raises(QueueFull) as caught, batcher.admit(1):
                pass
            assert caught.value.retry_after is not None
            assert 40 / 100 <= caught.value.retry_after < 10

    asyncio.run(main())


def test_a_slow_rate_never_asks_for_more_than_a_second_a_picture() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.seconds = 1.05
        async with batching(engine, max_batch=1, queue_size=5) as batcher:
            await asyncio.gather(*queue(batcher, range(3)))
            with batcher.admit(5), pytest.raises(QueueFull) as caught, batcher.admit(1):
                pass
            assert caught.value.retry_after == 5

    asyncio.run(main())


def test_the_rate_is_that_of_busy_seconds() -> None:
    """However long nobody came, what was measured while pictures waited holds."""

    async def main() -> None:
        engine = FakeEngine()
        engine.seconds = 0.1
        async with batching(engine, max_batch=1, queue_size=10) as batcher:
            for seed in range(3):
                await asyncio.sleep(0.3)
                await asyncio.gather(*queue(batcher, range(seed, seed + 1)))
            with batcher.admit(10), pytest.raises(QueueFull) as caught, batcher.admit(1):
                pass
            assert caught.value.retry_after is not None
            assert 1.0 <= caught.value.retry_after < 2.0  # 4 if the idle seconds had counted

    asyncio.run(main())


def test_a_batch_that_was_held_up_does_not_spoil_the_rate() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.seconds = 1.0
        async with batching(engine, max_batch=1) as batcher:
            await asyncio.gather(*queue(batcher, range(1)))
            with batcher.admit(20), batcher.admit(1, deadline=time.monotonic() + 5):
                pass  # one alone says nothing
            engine.seconds = 0.05
            await asyncio.gather(*queue(batcher, range(4)))
            with batcher.admit(20), batcher.admit(1, deadline=time.monotonic() + 5):
                pass

    asyncio.run(main())


def test_who_would_be_answered_after_his_deadline_is_refused_at_once() -> None:
    async def main() -> None:
        engine = FakeEngine()
        engine.seconds = 0.1
        async with batching(engine, max_batch=1) as batcher:
            soon = time.monotonic() + 0.3
            with batcher.admit(20), batcher.admit(5, deadline=soon):
                pass  # no rate is known yet
            await asyncio.gather(*queue(batcher, range(3)))
            soon = time.monotonic() + 0.3
            with batcher.admit(20):  # alone, whatever they take
                with pytest.raises(QueueFull, match="more than this request has left") as caught:
                    batcher.check_room(1, deadline=soon)
                assert caught.value.retry_after is not None
                assert 2.2 <= caught.value.retry_after < 3.0  # 1.25 times 21 pictures at 10 a second, less 0.3 s
                with batcher.admit(5, deadline=time.monotonic() + 60):
                    pass
            with batcher.admit(20, deadline=soon):
                pass

    asyncio.run(main())


def test_a_pass_that_stalls_is_not_alive_until_it_ends() -> None:
    async def main() -> None:
        engine = FakeEngine()
        async with batching(engine, stall_timeout=0.1) as batcher:
            batcher.check()
            first = await held_up(engine, batcher)
            batcher.check()
            await asyncio.sleep(0.15)
            with pytest.raises(NotAlive, match=r"more than 0\.1 s"):
                batcher.check()
            engine.release()
            await first
            batcher.check()

    asyncio.run(main())


def test_idling_longer_than_the_stall_timeout_is_no_stall() -> None:
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
