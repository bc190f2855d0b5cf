"""Ordered concurrent processing with bounded buffers."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def prefetch(items: Iterable[T], *, batch_size: int, buffer_size: int) -> Iterator[list[T]]:
    """Iterate in a thread of its own, and yield the items that are there as soon as there is one.

    Args:
        items: iterated ahead of use while the buffer has room.
        batch_size: most items that are yielded together.
        buffer_size: most items that wait to be yielded.

    Yields:
        1 to `batch_size` items.

    Raises:
        BaseException: what the iteration raised, after the items before it.
    """
    buffer: deque[T] = deque()
    changed = threading.Condition()
    exhausted = closed = False
    failure: BaseException | None = None

    def fill() -> None:
        nonlocal exhausted, failure
        try:
            for item in items:
                with changed:
                    changed.wait_for(lambda: closed or len(buffer) < buffer_size)
                    if closed:
                        return
                    buffer.append(item)
                    changed.notify_all()
        except BaseException as error:
            failure = error
        finally:
            with changed:
                exhausted = True
                changed.notify_all()

    threading.Thread(target=fill, name="prefetch", daemon=True).start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: buffer or exhausted)
                batch = [buffer.popleft() for _ in range(min(batch_size, len(buffer)))]
                changed.notify_all()
            if not batch:
                break
            yield batch
    finally:
        with changed:
            closed = True
            changed.notify_all()
    if failure is not None:
        raise failure


def ordered_map(pool: Executor, function: Callable[[T], U], items: Iterable[T], *, ahead: int) -> Iterator[U]:
    """Like `Executor.map`, but lazy: `items` may be endless, and at most `ahead` results are pending or unread.

    Args:
        pool: runs the function.
        function: called with each item.
        items: iterated in a thread of their own.
        ahead: most results that are pending or unread.

    Yields:
        The results in the order of the items, each as soon as it and those before it are done.

    Raises:
        BaseException: what `function` or the iteration raised.
    """

    def submit_all() -> Iterator[Future[U]]:
        for item in items:
            yield pool.submit(function, item)

    for (future,) in prefetch(submit_all(), batch_size=1, buffer_size=ahead):
        yield future.result()
