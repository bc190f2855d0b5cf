"""Threads that work in order."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.cli.classify.pipeline import gathered, in_order
from tests.app.running import eventually


def test_what_has_gathered_is_given_and_nothing_waits_for_more() -> None:
    more = threading.Event()

    def trickle() -> Iterator[int]:
        yield 1
        assert more.wait(20)
        yield from range(2, 12)

    groups = gathered(trickle(), most=4, room=4)
    assert next(groups) == [1]
    more.set()
    rest = list(groups)
    assert [number for group in rest for number in group] == list(range(2, 12))
    assert max(map(len, rest)) <= 4


def test_no_more_is_drawn_than_there_is_room_for() -> None:
    drawn: list[int] = []

    def noted() -> Iterator[int]:
        for number in range(1000):
            drawn.append(number)
            yield number

    groups = gathered(noted(), most=1, room=5)
    assert next(groups) == [0]
    eventually(lambda: len(drawn) >= 6, "it draws ahead")
    assert len(drawn) <= 7, "room for five, and one in the hand"
    groups.close()  # type: ignore[attr-defined]
    eventually(lambda: not any(thread.name == "draw" for thread in threading.enumerate()), "the thread ends")


def test_what_drawing_raised_comes_after_what_was_drawn() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    groups = gathered(failing(), most=1, room=5)
    assert next(groups) == [1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(groups)


def test_results_come_in_order_though_the_first_takes_longest() -> None:
    second = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert second.wait(20), "others are worked on meanwhile"
        else:
            second.set()
        return number * 10

    with ThreadPoolExecutor(2) as pool:
        assert list(in_order(pool, work, range(50), ahead=3)) == [number * 10 for number in range(50)]


def test_a_result_is_given_while_the_next_item_is_awaited() -> None:
    more = threading.Event()

    def trickle() -> Iterator[int]:
        yield 1
        assert more.wait(20)
        yield 2

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, lambda number: -number, trickle(), ahead=4)
        assert next(results) == -1
        more.set()
        assert next(results) == -2


def test_what_work_raised_comes_in_its_place() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(10), ahead=2)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(results)
