"""The routes that take images, without FastAPI's routing and dependencies."""

from collections.abc import Iterable
from traceback import clear_frames

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.compression import LEAST_COMPRESSED, compressed
from app.http.problems import Errors


class ImageRoutes:
    """Calls the endpoint of a route directly, also with a slash at the end; FastAPI handles any other request.

    FastAPI takes longer to find a route and to resolve its dependencies than the service to decode a small image. The
    routes are declared in FastAPI as well, for the documentation and for requests with another method. Their endpoints
    take only the request and check its API key and parameters themselves.

    Args:
        app: the application inside.
        routers: with routes for POST. Parameters of their paths are strings.
        errors: renders exceptions.
    """

    def __init__(self, app: ASGIApp, routers: Iterable[APIRouter], errors: Errors) -> None:
        self.app = app
        self.errors = errors
        routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        self.fixed: dict[str, APIRoute] = {route.path: route for route in routes if not route.param_convertors}
        self.parametrised = [route for route in routes if route.param_convertors]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._find(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = route
        try:
            response: Response = await route.endpoint(Request(scope, receive))
        except self.errors.known as error:
            response = self.errors.response(scope, error)
            # The frames of the traceback refer to the body and to decoded pixels. If one of them refers to the error as
            # well, all of this would remain in memory until the next run of the garbage collector.
            clear_frames(error.__traceback__)
        # Small ones do not pass through the middleware, which takes a twentieth of the time of such a request.
        large = len(response.body) >= LEAST_COMPRESSED
        await (compressed(response) if large else response)(scope, receive, send)

    def _find(self, scope: Scope) -> APIRoute | None:
        path = scope["path"].removesuffix("/")
        if route := self.fixed.get(path):
            return route
        for route in self.parametrised:
            if match := route.path_regex.match(path):
                scope["path_params"] = match.groupdict()
                return route
        return None
