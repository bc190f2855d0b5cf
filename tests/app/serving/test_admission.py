import asyncio
import time

import pytest

from app.serving.admission import Admission, CompletionRate
from app.serving.errors import QueueFull, TooManyUploads


def admission(**limits: int) -> Admission:
    return Admission(**{"max_images": 10, "max_uploads": 10, "max_held_bytes": 1000, **limits})


def complete(limits: Admission, *seconds: float, images: int = 1) -> None:
    """End batches that take so many seconds each, one after the other."""
    for each in seconds:
        since = time.monotonic()
        time.sleep(each)
        limits.completed(images, since=since)


def test_images_are_limited_over_all_requests() -> None:
    limits = admission()
    with limits.images(4), limits.images(5):
        assert limits.images_in_progress == 9
        with pytest.raises(QueueFull), limits.images(2):
            pass
        assert limits.images_in_progress == 9
        with limits.images(1):
            assert limits.images_in_progress == 10
    assert limits.images_in_progress == 0


def test_room_is_released_after_an_error_and_a_cancellation() -> None:
    async def main() -> None:
        limits = admission()
        with pytest.raises(RuntimeError), limits.images(10):
            raise RuntimeError

        async def hold() -> None:
            with limits.upload(), limits.images(10):
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await asyncio.sleep(0)
        assert (limits.images_in_progress, limits.uploads_in_progress) == (10, 1)
        task.cancel()
        await asyncio.wait([task])
        assert (limits.images_in_progress, limits.uploads_in_progress) == (0, 0)

    asyncio.run(main())


def test_uploads_are_limited_and_need_room_for_one_image() -> None:
    limits = admission(max_uploads=2)
    with limits.upload(), limits.upload():
        with pytest.raises(TooManyUploads), limits.upload():
            pass
        assert limits.uploads_in_progress == 2
    with limits.images(10), pytest.raises(QueueFull), limits.upload():
        pass
    assert limits.uploads_in_progress == 0


def test_bytes_of_bodies_are_limited_and_released() -> None:
    limits = admission()
    limits.hold_bytes(600)
    limits.hold_bytes(400)
    with pytest.raises(TooManyUploads):
        limits.hold_bytes(1)
    limits.hold_bytes(-1001)
    limits.hold_bytes(1000)


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
