import asyncio
import contextlib
import time
from random import Random

import pytest

from app.serving.admission import Admission, CompletionRate, Limits, SharedLimit
from app.serving.errors import QueueFull, TooManyUploads


def limits_of(*models: str, **limits: int) -> Limits:
    return Limits(models, **{"max_images": 10, "max_uploads": 10, "max_held_bytes": 1000, **limits})


def admission(**limits: int) -> Admission:
    """Of the only model."""
    return Admission("a", limits_of("a", **limits))


def complete(limits: Admission, *seconds: float, images: int = 1) -> None:
    """End batches that take so many seconds each, one after the other."""
    for each in seconds:
        since = time.monotonic()
        time.sleep(each)
        limits.completed(images, since=since)


def test_images_are_limited_over_all_requests() -> None:
    limits = limits_of("a")
    model = Admission("a", limits)
    with model.images(4), model.images(5):
        assert limits.images.used == {"a": 9}
        with pytest.raises(QueueFull), model.images(2):
            pass
        assert limits.images.used == {"a": 9}
        with model.images(1):
            assert limits.images.used == {"a": 10}
    assert limits.images.used == {"a": 0}


def test_room_is_released_after_an_error_and_a_cancellation() -> None:
    async def main() -> None:
        limits = limits_of("a")
        model = Admission("a", limits)
        with pytest.raises(RuntimeError), model.images(10):
            raise RuntimeError

        async def hold() -> None:
            with model.upload(), model.images(10):
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await asyncio.sleep(0)
        assert (limits.images.used, limits.uploads.used) == ({"a": 10}, {"a": 1})
        task.cancel()
        await asyncio.wait([task])
        assert (limits.images.used, limits.uploads.used) == ({"a": 0}, {"a": 0})

    asyncio.run(main())


def test_uploads_are_limited_and_need_room_for_one_image() -> None:
    limits = limits_of("a", max_uploads=2)
    model = Admission("a", limits)
    with model.upload(), model.upload():
        with pytest.raises(TooManyUploads), model.upload():
            pass
        assert limits.uploads.used == {"a": 2}
    with model.images(10), pytest.raises(QueueFull), model.upload():
        pass
    assert limits.uploads.used == {"a": 0}


def test_bytes_of_bodies_are_limited_and_released() -> None:
    limits = limits_of("a")
    limits.hold_bytes("a", 600)
    limits.hold_bytes("a", 400)
    with pytest.raises(TooManyUploads):
        limits.hold_bytes("a", 1)
    limits.hold_bytes("a", -1001)
    limits.hold_bytes("a", 1000)


def test_a_flood_for_one_model_leaves_the_others_their_shares() -> None:
    limits = limits_of("a", "b", max_images=40, max_uploads=40)
    flooded, other = Admission("a", limits), Admission("b", limits)
    with contextlib.ExitStack() as stack:
        for _ in range(30):  # a quarter is the other model's share
            stack.enter_context(flooded.images(1))
        with pytest.raises(QueueFull, match="30 images for a are in progress and the limit is 30"):
            flooded.check_images(1)
        with other.images(10), pytest.raises(QueueFull):
            other.check_images(1)
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(flooded.upload())
        with pytest.raises(TooManyUploads, match="30 uploads for a"), flooded.upload():
            pass
        with other.upload():
            assert limits.uploads.used == {"a": 30, "b": 1}
    limits.hold_bytes("a", 750)
    with pytest.raises(TooManyUploads):
        limits.hold_bytes("a", 1)
    limits.hold_bytes("b", 249)


@pytest.mark.parametrize("models", [1, 2, 3, 7])
@pytest.mark.parametrize("maximum", [1, 2, 10, 256])
def test_the_sum_over_all_models_never_exceeds_a_shared_limit(models: int, maximum: int) -> None:
    random = Random(models * maximum)
    names = [str(number) for number in range(models)]
    limit = SharedLimit(maximum, names)
    for _ in range(2000):
        name = random.choice(names)
        if limit.free(name) > 0 and random.random() < 0.7:
            limit.add(name, random.randint(1, limit.free(name)))
        elif limit.used[name]:
            limit.add(name, -random.randint(1, limit.used[name]))
        assert sum(limit.used.values()) <= maximum
        assert all(limit.free(each) >= maximum // (2 * models) - limit.used[each] for each in names)


def test_one_model_may_use_a_whole_limit_and_several_at_least_half() -> None:
    assert SharedLimit(9, ["a"]).free("a") == 9
    assert SharedLimit(16, ["a", "b"]).free("a") == 12
    assert SharedLimit(1000, map(str, range(100))).free("1") == 505


def test_bytes_of_a_request_for_no_model_have_no_share() -> None:
    limits = limits_of("a")
    limits.hold_bytes("", 500)
    with pytest.raises(TooManyUploads):
        limits.hold_bytes("", 1)


def test_the_rate_of_one_model_does_not_limit_another() -> None:
    limits = limits_of("slow", "other", max_images=100)
    slow, other = Admission("slow", limits), Admission("other", limits)
    complete(slow, *[0.1] * 3)
    soon = time.monotonic() + 0.3
    with slow.images(20), other.images(20):
        with pytest.raises(QueueFull):
            slow.check_images(1, deadline=soon)
        other.check_images(1, deadline=soon)


def test_retry_after_is_one_second_for_each_image_without_a_rate() -> None:
    limits = admission(max_images=7)
    with limits.images(7), pytest.raises(QueueFull) as caught, limits.images(1):
        pass
    assert caught.value.retry_after == 7


def test_retry_after_follows_the_measured_rate() -> None:
    limits = admission(max_images=40)
    complete(limits, *[0.02] * 10, images=2)  # at most 100 images a second
    with limits.images(40), pytest.raises(QueueFull) as caught, limits.images(1):
        pass
    assert 40 / 100 <= caught.value.retry_after < 10


def test_retry_after_is_at_most_one_second_for_each_image() -> None:
    rate = CompletionRate()
    for _ in range(4):
        rate.add(1, time.monotonic() - 5)
    assert rate.per_second() >= 1.0


def test_idle_time_does_not_lower_the_rate() -> None:
    rate = CompletionRate()
    for _ in range(4):
        time.sleep(0.2)  # no image is admitted
        rate.add(1, time.monotonic() - 0.05)
    assert rate.per_second() > 8  # 20 a second, less on a busy machine; 4 if idle time counted


def test_time_before_the_batch_counts_so_that_slow_decoding_lowers_the_rate() -> None:
    """Six images are admitted at once and decoded one after the other: the forward passes are not the limit."""
    rate = CompletionRate()
    admitted = time.monotonic()
    for _ in range(6):
        time.sleep(0.05)  # decoding
        rate.add(1, admitted)
    assert rate.per_second() <= 20


def test_one_interrupted_batch_does_not_lower_the_rate() -> None:
    limits = admission(max_images=100)
    complete(limits, 1.0)
    with limits.images(20), limits.images(1, deadline=time.monotonic() + 5):
        pass  # one sample alone is no measurement
    complete(limits, *[0.02] * 4)
    with limits.images(20), limits.images(1, deadline=time.monotonic() + 10):
        pass


def test_old_samples_do_not_count() -> None:
    rate = CompletionRate()
    assert rate.per_second() == 0
    for _ in range(2):
        rate.add(1, time.monotonic() - 0.1)
    assert rate.per_second() == 0, "two samples are too few"


def test_images_that_would_miss_their_deadline_are_refused_at_once() -> None:
    limits = admission(max_images=100)
    with limits.images(20), limits.images(5, deadline=time.monotonic() + 0.3):
        pass  # no rate is known yet
    complete(limits, *[0.1] * 3)  # at most 10 a second
    soon = time.monotonic() + 0.3
    with limits.images(20):  # alone, at any rate
        with pytest.raises(QueueFull, match="longer than the deadline of this request allows") as caught:
            limits.check_images(1, deadline=soon)
        assert caught.value.retry_after >= 2.2  # 1.25 times 21 images at 10 a second, less 0.3 s
        with limits.images(5, deadline=time.monotonic() + 600):
            pass
    with limits.images(20, deadline=soon):
        pass
