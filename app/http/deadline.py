"""A request's pictures and the work for them: within its deadline, and while its caller is there."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from app.http.middleware import ClientGone
from app.http.problems import DeadlinePassed, UploadTooSlow
from app.http.upload import Upload, read_uploads
from app.serving.service import Service

T = TypeVar("T")

# Seconds after which it is looked whether the caller is still there; that takes a task, and most are answered by then.
_PATIENCE = 0.25


async def in_time(
    request: Request,
    service: Service,
    patience: float | None,
    max_files: int,
    work: Callable[[list[Upload], float], Coroutine[Any, Any, T]],
) -> tuple[list[Upload], T]:
    """Read a request's pictures and do the work for them, within its deadline and while its caller is there.

    Args:
        request: the body of which has not been read.
        service: whose settings hold.
        patience: seconds to the answer, if fewer than the setting's.
        max_files: most pictures in it.
        work: is given the pictures and the deadline (time.monotonic).

    Returns:
        The pictures, and what the work gave.

    Raises:
        UploadTooSlow: the body was not here in time.
        DeadlinePassed: the work was not done in time.
        ClientGone: nobody waits for it any more.
        Exception: what reading or working raised.
    """
    limit = min(service.settings.timeout, patience or service.settings.timeout)
    ends = request.state.arrived + limit
    uploads = None
    deadline = asyncio.timeout_at(asyncio.get_running_loop().time() + ends - time.monotonic())
    try:
        async with deadline:
            with service.uploading(deadline=ends):
                uploads = await read_uploads(request, max_files=max_files)
            return uploads, await _while_connected(request, work(uploads, ends))
    except TimeoutError as error:
        if not deadline.expired():
            raise  # the engine's own
        if uploads is None:
            raise UploadTooSlow(f"the body was not here within {limit:g} s: send smaller pictures") from error
        raise DeadlinePassed(f"no answer within {limit:g} s: send fewer or smaller pictures, or try later") from error


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, given up soon after the caller hangs up.

    Raises:
        ClientGone: it did.
    """
    watch = _Watch(request)
    looking = asyncio.get_running_loop().call_later(_PATIENCE, watch.begin)
    try:
        result = await work
    except asyncio.CancelledError:
        if watch.gone and watch.forgive():
            raise ClientGone from None
        raise
    finally:
        looking.cancel()
        watch.end()
    if watch.gone:  # just now: who goes on would be cancelled where he waits next
        raise ClientGone
    return result


class _Watch:
    """Cancels the task that it is made in when the caller hangs up."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._watched = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self.gone = False

    def begin(self) -> None:
        self._task = asyncio.create_task(self._run())

    def end(self) -> None:
        if self._task:
            self._task.cancel()

    def forgive(self) -> bool:
        """Take the cancellation back; whether that was the only one."""
        return self._watched is not None and self._watched.uncancel() == 0

    async def _run(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass  # the body has been read, so nothing else can come
        self.gone = True
        if self._watched:
            self._watched.cancel()
