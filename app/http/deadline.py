"""The deadline of a request, and the end of its work when its client disconnects."""

import asyncio
import time
from types import TracebackType
from typing import Self

from starlette.requests import Request

from app.http.problems import ClientDisconnected, DeadlinePassed, UploadTooSlow
from app.serving.service import Service

# Bytes per second that a body must arrive with on average, beyond the first seconds: half of what the slowest mobile
# networks have (EDGE).
_LEAST_RATE = 10_000
# Seconds after which this rate is required where there is little room for more uploads.
_SCARCE_GRACE = 1.0
# Seconds before the first check whether the client is still connected. The check takes a task, and most requests are
# finished by then.
_WATCH_AFTER = 0.25


class Deadline:
    """An async context manager that ends what runs inside at the deadline, or when the client disconnects.

    The deadline is `timeout` seconds after the first byte of the request. While the body arrives in several pieces it
    is extended: nothing may arrive for `timeout` seconds, 10 kB must arrive in each second beyond them on average, and
    all of it within `upload_timeout` seconds. If there is little room for more uploads, these 10 kB are required beyond
    the first second. The response is due `timeout` seconds after the end of the body.

    Args:
        request: its body has not been read.
        service: its settings have both timeouts, and its limits count the uploads.
        requested: the client's own limit in seconds, from the first byte to the response, if it is below `timeout`.

    Attributes:
        at: the deadline as time.monotonic().

    Raises:
        UploadTooSlow: the deadline passed before the body was read, or the body arrived too slowly.
        DeadlinePassed: the deadline passed later.
        ClientDisconnected: the client closed the connection.
    """

    def __init__(self, request: Request, service: Service, requested: float | None = None) -> None:
        settings = service.settings
        self._request = request
        self._limits = service.limits
        self._limit = settings.timeout if requested is None else min(settings.timeout, requested)
        self._extensible = requested is None or requested >= settings.timeout
        self._upload_limit = max(settings.upload_timeout, self._limit) if self._extensible else self._limit
        self._received = 0
        self.at = request.state.arrived + self._limit
        request.state.deadline = self

    def body_continues(self, size: int) -> None:
        """Extend the deadline after a piece of the body with so many bytes."""
        self._received += size
        arrived: float = self._request.state.arrived
        enough = arrived + self._limit + self._received / _LEAST_RATE
        self._move(min(time.monotonic() + self._limit, enough, arrived + self._upload_limit))

    def body_ends(self) -> None:
        """Set the deadline of the response to a body that arrived in several pieces."""
        self._move(time.monotonic() + self._limit)

    def _move(self, at: float) -> None:
        if self._extensible:
            self.at = at
            self._timeout.reschedule(asyncio.get_running_loop().time() + at - time.monotonic())

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
        self._request.state.deadline = None  # the request refers to this, and this to the request
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
            return UploadTooSlow(
                f"the body did not arrive within {self._upload_limit:g} s at {_LEAST_RATE // 1000} kB/s or more: "
                "send smaller images"
            )
        return DeadlinePassed(f"no response within {self._limit:g} s: send fewer or smaller images, or try again later")

    @property
    def _body_read(self) -> bool:
        return getattr(self._request.state, "body_read", False)

    def _watch(self) -> None:
        if self._body_read:  # before, receive() belongs to the code that reads the body
            self._watcher = asyncio.create_task(self._wait_for_disconnect())
        else:
            late = self._request.state.arrived + _SCARCE_GRACE + self._received / _LEAST_RATE
            if self._limits.uploads_are_scarce and late < self.at:
                self.at = max(late, time.monotonic())
                self._timeout.reschedule(asyncio.get_running_loop().time() + self.at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._watch)

    async def _wait_for_disconnect(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass  # the body has been read, so nothing else comes
        self._disconnected = True
        if self._task:
            self._task.cancel()
