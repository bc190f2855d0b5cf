"""Ordered concurrent processing."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.cli.classify.pipeline import ordered_map, prefetch
from tests.app.running import eventually


def test_available_items_are_yielded_without_waiting_for_more() -> None:
    more = threading.Event()

    def trickle() -> Iterator[int]:
        yield 1
        assert more.wait(20)
        yield from range(2, 12)

    batches = prefetch(trickle(), batch_size=4, buffer_size=4)
    assert next(batches) == [1]
    more.set()
    rest = list(batches)
    assert [number for batch in rest for number in batch] == list(range(2, 12))
    assert max(map(len, rest)) <= 4


def test_the_buffer_is_bounded() -> None:
    seen: list[int] = []

    def recorded() -> Iterator[int]:
        for number in range(1000):
            seen.append(number)
            yield number

    batches = prefetch(recorded(), batch_size=1, buffer_size=5)
    assert next(batches) == [0]
    eventually(lambda: len(seen) >= 6, "it iterates ahead")
    assert len(seen) <= 7, "five in the buffer and one that waits for room"
    batches.close()  # type: ignore[attr-defined]
    eventually(lambda: not any(thread.name == "prefetch" for thread in threading.enumerate()), "the thread ends")


def test_an_error_of_the_iteration_is_raised_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    batches = prefetch(failing(), batch_size=1, buffer_size=5)
    assert next(batches) == [1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)


def test_results_are_in_order_even_if_the_first_takes_longest() -> None:
    second = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second.wait(20), "the others are processed concurrently"
        else:
            second.set()
        return number * 10

    with ThreadPoolExecutor(2) as pool:
        assert list(ordered_map(pool, work, range(50), ahead=3)) == [number * 10 for number in range(50)]


def test_a_result_is_yielded_while_the_iteration_blocks() -> None:
    more = threading.Event()

    def trickle() -> Iterator[int]:
        yield 1
        assert more.wait(20)
        yield 2

    with ThreadPoolExecutor(1) as pool:
        results = ordered_map(pool, lambda number: -number, trickle(), ahead=4)
        assert next(results) == -1
        more.set()
        assert next(results) == -2


def test_an_error_of_the_function_is_raised_in_place() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    with ThreadPoolExecutor(1) as pool:
        results = ordered_map(pool, work, range(10), ahead=2)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(results)
