"""The application: create_app for tests and other servers, `app` for `uvicorn app.main:app`."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app import __version__
from app.http.auth import require_key
from app.http.dispatch import ImageRoutes
from app.http.middleware import BodyLimit, InternalErrors, RequestContext
from app.http.problems import Errors
from app.http.routes import docs, explain, health, metrics, model, page, predict
from app.serving.service import Service
from app.settings import Settings
from model import Classifier
from model import load as load_bundle


def create_app(
    settings: Settings | None = None,
    *,
    load: Callable[[], Classifier] | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Build the application.

    Args:
        settings: read from the environment if not given.
        load: returns the classifier. Called in the engine's thread. Loads `settings.weights` if not given.
        on_failure: called when loading fails or the engine stops working. /readyz and /livez report it in any case.
    """
    settings = settings or Settings()
    load = load or partial(
        load_bundle, settings.weights, engine=settings.engine, device=settings.device, threads=settings.threads
    )
    service = Service(settings, load, on_failure)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="Tenfold",
        description="Upload an image, get its ranked CIFAR-10 classes.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    errors = Errors()
    errors.install(app)
    # The middleware added last is the outermost.
    image_routers = (predict.router, explain.router)
    app.add_middleware(ImageRoutes, routers=image_routers, errors=errors)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, admission=service.admission)
    app.add_middleware(InternalErrors, errors=errors)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
    app.add_middleware(RequestContext, telemetry=service.telemetry, closing=lambda: service.closing)
    keys = [Depends(require_key)] if settings.api_keys else []
    for router in (*image_routers, model.router, metrics.router):
        app.include_router(router, dependencies=keys)
    app.include_router(health.router)
    app.include_router(page.router)
    app.include_router(docs.router)
    return app


def __getattr__(name: str) -> FastAPI:
    """Build `app` when a server needs it, not when `python -m app` imports this module for create_app."""
    if name != "app":
        raise AttributeError(name)
    return create_app()
