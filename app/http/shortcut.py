"""The way to one route past FastAPI's routing, dependencies and exception handling."""

from collections.abc import Awaitable, Callable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.problems import TABLE, handle

_KNOWN = tuple(cls for cls in TABLE if cls is not Exception)


class Shortcut:
    """Answers a route at once; all else, and what is wrong with it but unknown, goes on as without it.

    For a small picture FastAPI takes longer to find the route and to solve its parameters than Pillow to decode it.
    The route stays declared there: for the documentation, and for applications whose routes ask for a key.

    Args:
        app: what is wrapped.
        route: with a path that has no parameters.
        answer: does what the route's endpoint does.
    """

    def __init__(self, app: ASGIApp, route: APIRoute, answer: Callable[[Request], Awaitable[Response]]) -> None:
        self.app = app
        self.route = route
        self.methods = route.methods or set()
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != self.route.path or scope["method"] not in self.methods:
            await self.app(scope, receive, send)
            return
        scope["route"] = self.route
        request = Request(scope, receive)
        try:
            response = await self.answer(request)
        except _KNOWN as error:
            response = await handle(request, error)
        await response(scope, receive, send)
