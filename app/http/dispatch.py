"""The routes that take images, without FastAPI's routing and dependencies."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.problems import Errors

Endpoint = Callable[[Request], Awaitable[Response]]


class ImageRoutes:
    """Calls the endpoint of a route directly, also with a slash at the end; FastAPI handles any other request.

    FastAPI takes longer to find a route and to resolve its dependencies than the service to decode a small image. The
    routes are declared in FastAPI as well, for the documentation and for requests with another method. Their endpoints
    take only the request and check its API key and parameters themselves.

    Args:
        app: the application inside.
        routers: with routes for POST whose paths have no parameters.
        errors: renders exceptions.
    """

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter], errors: Errors) -> None:
        self.app = app
        self.errors = errors
        self.routes: dict[str, tuple[APIRoute, Endpoint]] = {
            route.path: (route, route.endpoint)
            for router in routers
            for route in router.routes
            if isinstance(route, APIRoute)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        found = self.routes.get(scope["path"].removesuffix("/")) if is_post else None
        if found is None:
            await self.app(scope, receive, send)
            return
        scope["route"], endpoint = found
        try:
            response: Any = await endpoint(Request(scope, receive))
        except self.errors.known as error:
            response = self.errors.response(scope, error)
        await response(scope, receive, send)
