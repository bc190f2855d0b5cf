"""The application: create_app for tests and other servers, `app` for `uvicorn app.main:app`."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from app.http import problems
from app.http.auth import require_key
from app.http.middleware import BodyLimit, RequestContext
from app.http.routes import explain, health, metrics, model, page, predict
from app.http.shortcut import Shortcut
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
        load: gives the classifier; called in the engine's thread. Loads `settings.weights` if not given.
        on_failure: called when loading fails or the engine stops working; /readyz and /livez tell of it in any case.
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
        description="Upload a picture, get its ranked CIFAR-10 classes.",
        version="0.1.0",
        lifespan=lifespan,
    )
    app.state.service = service
    problems.install(app)
    # The last one added is the outermost.
    if not settings.api_keys:
        app.add_middleware(Shortcut, route=predict.route, answer=predict.predict_directly)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_held_bytes=settings.max_held_bytes)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "Server-Timing", "X-Request-ID"],
        )
    app.add_middleware(
        RequestContext, telemetry=service.telemetry, closing=lambda: service.state in ("draining", "failed")
    )
    app.include_router(health.router)
    app.include_router(page.router)
    keys = [Depends(require_key)] if settings.api_keys else []
    for router in (predict.router, explain.router, model.router, metrics.router):
        app.include_router(router, dependencies=keys)
    return app


def __getattr__(name: str) -> FastAPI:
    """Build `app` when a server asks for it, not when `python -m app` imports this module for create_app."""
    if name != "app":
        raise AttributeError(name)
    return create_app()
