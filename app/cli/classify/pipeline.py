"""Work in threads, in order, in constant memory: short buffers, and no timer to wait for."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def gathered(items: Iterable[T], *, most: int, room: int) -> Iterator[list[T]]:
    """Draw items in a thread of its own, and give what has gathered as soon as there is any.

    Args:
        items: drawn ahead of their use, while there is room.
        most: items given at a time.
        room: items that may wait.

    Raises:
        BaseException: what drawing raised, after what came before it.
    """
    waiting: deque[T] = deque()
    changed = threading.Condition()
    ended = left = False
    failure: BaseException | None = None

    def draw() -> None:
        nonlocal ended, failure
        try:
            for item in items:
                with changed:
                    changed.wait_for(lambda: left or len(waiting) < room)
                    if left:
                        return
                    waiting.append(item)
                    changed.notify_all()
        except BaseException as error:
            failure = error
        finally:
            with changed:
                ended = True
                changed.notify_all()

    threading.Thread(target=draw, name="draw", daemon=True).start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
                changed.notify_all()
            if not taken:
                break
            yield taken
    finally:
        with changed:
            left = True
            changed.notify_all()
    if failure is not None:
        raise failure


def in_order(pool: Executor, work: Callable[[T], U], items: Iterable[T], *, ahead: int) -> Iterator[U]:
    """The results of `work`, in the order of the items, each as soon as it and those before it are there.

    Args:
        pool: that runs it.
        work: done for each item.
        items: drawn in a thread of their own.
        ahead: results that may wait to be taken, or to be made.

    Raises:
        BaseException: what `work` or drawing raised.
    """

    def submitted() -> Iterator[Future[U]]:
        for item in items:
            yield pool.submit(work, item)

    for (future,) in gathered(submitted(), most=1, room=ahead):
        yield future.result()
