"""The deadline of a request, and the end of its work when its client disconnects."""

import asyncio
import time
from types import TracebackType
from typing import Self

from starlette.requests import Request

from app.http.problems import ClientDisconnected, DeadlinePassed, UploadTooSlow

# Seconds before the first check whether the client is still connected. The check takes a task, and most requests are
# finished by then.
_WATCH_AFTER = 0.25


class Deadline:
    """An async context manager that ends what runs inside at the deadline, or when the client disconnects.

    Args:
        request: its body has not been read.
        limit: seconds from the first byte of the request to its response.
        requested: the client's own limit in seconds, if it is shorter.

    Attributes:
        at: the deadline as time.monotonic().

    Raises:
        UploadTooSlow: the deadline passed before the body was read.
        DeadlinePassed: the deadline passed later.
        ClientDisconnected: the client closed the connection.
    """

    def __init__(self, request: Request, limit: float, requested: float | None = None) -> None:
        self._request = request
        self._limit = limit if requested is None else min(limit, requested)
        self.at = request.state.arrived + self._limit

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._watcher: asyncio.Task[None] | None = None
        self._disconnected = False
        self._timeout = asyncio.timeout_at(loop.time() + self.at - time.monotonic())
        await self._timeout.__aenter__()
        self._timer = loop.call_later(_WATCH_AFTER, self._watch)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watcher:
            self._watcher.cancel()
        if self._disconnected and self._task and kind in (None, asyncio.CancelledError) and not self._task.uncancel():
            await self._timeout.__aexit__(None, None, None)
            raise ClientDisconnected
        try:
            await self._timeout.__aexit__(kind, error, traceback)
        except TimeoutError as timeout:
            raise self._passed() from timeout

    def _passed(self) -> UploadTooSlow | DeadlinePassed:
        if not self._body_read:
            return UploadTooSlow(f"the body did not arrive within {self._limit:g} s: send smaller images")
        return DeadlinePassed(f"no response within {self._limit:g} s: send fewer or smaller images, or try again later")

    @property
    def _body_read(self) -> bool:
        return getattr(self._request.state, "body_read", False)

    def _watch(self) -> None:
        if self._body_read:  # before, receive() belongs to the code that reads the body
            self._watcher = asyncio.create_task(self._wait_for_disconnect())
        else:
            self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._watch)

    async def _wait_for_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass  # the body has been read, so nothing else comes
        self._disconnected = True
        if self._task:
            self._task.cancel()
