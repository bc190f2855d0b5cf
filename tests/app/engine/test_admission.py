import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random

import pytest

from app.engine.admission import Admission, CompletionRate, SharedLimit
from app.engine.errors import QueueFull


def admission(images: int = 10) -> Admission:
    """Of the only model."""
    return Admission("a", SharedLimit(images, ["a"]))


@contextmanager
def admitted(model: Admission, count: int, **options: float) -> Iterator[None]:
    """Hold room for images."""
    model.admit(count, **options)
    try:
        yield
    finally:
        model.release(count)


def complete(limits: Admission, *seconds: float, images: int = 1) -> None:
    """End batches that take so many seconds each, one after the other."""
    for each in seconds:
        since = time.monotonic()
        time.sleep(each)
        limits.completed(images, since=since)


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


def test_images_are_limited_over_all_requests() -> None:
    limit = SharedLimit(10, ["a"])
    model = Admission("a", limit)
    with admitted(model, 4), admitted(model, 5):
        assert limit.used == {"a": 9}
        with pytest.raises(QueueFull):
            model.admit(2)
        assert limit.used == {"a": 9}
        with admitted(model, 1):
            assert limit.used == {"a": 10}
    assert limit.used == {"a": 0}


def test_a_flood_for_one_model_leaves_the_others_their_shares() -> None:
    limit = SharedLimit(40, ["a", "b"])
    flooded, other = Admission("a", limit), Admission("b", limit)
    for _ in range(30):  # a quarter is the other model's share
        flooded.admit(1)
    with pytest.raises(QueueFull, match="30 images for a are in progress and the limit is 30"):
        flooded.check(1)
    with admitted(other, 10), pytest.raises(QueueFull):
        other.check(1)


def test_the_load_lets_another_process_refuse_as_the_limits_would() -> None:
    model = admission(10)
    with admitted(model, 7):
        load = model.load
        assert (load.used, load.free) == (7, 3)
        load.check("a", 3, 60)
        with pytest.raises(QueueFull, match="7 images for a are in progress and the limit is 10"):
            load.check("a", 4, 60)
        with pytest.raises(QueueFull, match="longer than the deadline"):
            load._replace(rate=1.0).check("a", 1, 5)


def test_the_rate_of_one_model_does_not_limit_another() -> None:
    limit = SharedLimit(100, ["slow", "other"])
    slow, other = Admission("slow", limit), Admission("other", limit)
    complete(slow, *[0.1] * 3)
    soon = time.monotonic() + 0.3
    with admitted(slow, 20), admitted(other, 20):
        with pytest.raises(QueueFull):
            slow.check(1, deadline=soon)
        other.check(1, deadline=soon)


def test_retry_after_is_one_second_for_each_image_without_a_rate() -> None:
    limits = admission(7)
    with admitted(limits, 7), pytest.raises(QueueFull) as caught, admitted(limits, 1):
        pass
    assert caught.value.retry_after == 7


def test_retry_after_follows_the_measured_rate() -> None:
    limits = admission(40)
    complete(limits, *[0.02] * 10, images=2)  # at most 100 images a second
    with admitted(limits, 40), pytest.raises(QueueFull) as caught, admitted(limits, 1):
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
    limits = admission(100)
    complete(limits, 1.0)
    with admitted(limits, 20), admitted(limits, 1, deadline=time.monotonic() + 5):
        pass  # one sample alone is no measurement
    complete(limits, *[0.02] * 4)
    with admitted(limits, 20), admitted(limits, 1, deadline=time.monotonic() + 10):
        pass


def test_old_samples_do_not_count() -> None:
    rate = CompletionRate()
    assert rate.per_second() == 0
    for _ in range(2):
        rate.add(1, time.monotonic() - 0.1)
    assert rate.per_second() == 0, "two samples are too few"


def test_images_that_would_miss_their_deadline_are_refused_at_once() -> None:
    limits = admission(100)
    with admitted(limits, 20), admitted(limits, 5, deadline=time.monotonic() + 0.3):
        pass  # no rate is known yet
    complete(limits, *[0.1] * 3)  # at most 10 a second
    soon = time.monotonic() + 0.3
    with admitted(limits, 20):  # alone, at any rate
        with pytest.raises(QueueFull, match="longer than the deadline of this request allows") as caught:
            limits.check(1, deadline=soon)
        assert caught.value.retry_after >= 2.2  # 1.25 times 21 images at 10 a second, less 0.3 s
        with admitted(limits, 5, deadline=time.monotonic() + 600):
            pass
    with admitted(limits, 20, deadline=soon):
        pass
