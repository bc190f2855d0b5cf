"""The application: create_app, and `app` for other ASGI servers, such as `hypercorn app.main:app`."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from app import __version__
from app.engine.api import EngineClient
from app.engine.core import EngineCore
from app.engine.models import Load
from app.http.auth import require_key
from app.http.compression import compressed
from app.http.dispatch import ImageRoutes
from app.http.middleware import (
    BodyLimit,
    InternalErrors,
    PathPrefix,
    RequestContext,
    allowed_hosts,
    relative_redirects,
)
from app.http.oip.errors import error_response
from app.http.oip.messages import HEADER_LENGTH
from app.http.problems import Errors
from app.http.routes import admin, docs, drift, explain, feedback, health, metrics, models, page, predict, v2
from app.serving.service import Service
from app.settings import Settings, error_messages, missing_weights
from app.telemetry.metrics import Telemetry
from model import CARD_FILE, BundleError, ModelError, read_card
from model import load as load_bundle

_TAGS = [
    {"name": "predict", "description": "Classify images."},
    {"name": "explain", "description": "Which parts of an image speak for a class."},
    {"name": "models", "description": "What is served."},
    {"name": "metrics", "description": "What the service has done."},
    {"name": "admin", "description": "Replace weights. These operations need an admin key."},
    {"name": "feedback", "description": "Right labels from clients."},
    {"name": "health", "description": "Probes. They need no key."},
    {"name": "open inference protocol", "description": "The same models for clients of KServe, Triton and others."},
]


def create_app(
    settings: Settings | None = None,
    *,
    load: Mapping[str, Load] | None = None,
    on_failure: Callable[[], None] = lambda: None,
    engine: EngineClient | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        settings: read from the environment if not given.
        load: name to load function of each model, the default model first. Loads `settings.bundles` if not given.
        on_failure: called when loading fails or an engine stops working. /readyz and /livez report it in any case.
        engine: in the place of one in this process.

    Raises:
        ModelError: a bundle has no valid card, or two have the same name.
    """
    settings = settings or Settings()
    telemetry = Telemetry()
    service = Service(settings, engine or create_engine(settings, telemetry, load, on_failure), telemetry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    optional = {
        "admin": settings.admin_keys,
        "feedback": settings.feedback,
        "open inference protocol": settings.open_inference,
    }
    unused = {name for name, used in optional.items() if not used}
    app = FastAPI(
        title="Tenfold",
        description="Upload an image, get its ranked classes with calibrated probabilities.",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        generate_unique_id_function=lambda route: route.name,
        redoc_url=None,
        servers=[
            {"url": ".", "description": "this service"}
        ],  # relative to the URL of the schema, whatever a proxy does to paths
        openapi_tags=[tag for tag in _TAGS if tag["name"] not in unused],
    )
    app.state.service = service
    errors = Errors({"/v2": error_response} if settings.open_inference else {})
    errors.install(app)
    # The middleware added last is the outermost.
    image_routers = [predict.router, explain.router]
    if settings.open_inference:
        image_routers.append(v2.inference)
    app.add_middleware(relative_redirects)
    app.add_middleware(compressed)
    app.add_middleware(ImageRoutes, routers=image_routers, errors=errors)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, limits=service.limits)
    if settings.allowed_hosts:
        app.add_middleware(allowed_hosts, hosts=settings.allowed_hosts, errors=errors)
    app.add_middleware(InternalErrors, errors=errors)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["DELETE", "GET", "POST"],
            allow_headers=["*"],
            expose_headers=[HEADER_LENGTH, "Retry-After", "Server-Timing", "X-Request-ID"],
        )
    app.add_middleware(
        RequestContext,
        telemetry=telemetry,
        closing=lambda: service.closing,
        log_probes=settings.log_probes,
    )
    app.add_middleware(PathPrefix, prefix=settings.root_path)
    keys = [Depends(require_key)] if settings.api_keys else []
    own = (predict, explain, models, metrics, drift, admin, feedback, health)
    for route in (route for module in own for route in module.router.routes):
        if isinstance(route, APIRoute):  # FastAPI's default is the name of the function
            route.summary = route.description.partition(".")[0]
    for router in (*image_routers, models.router, metrics.router, drift.router):
        app.include_router(router, dependencies=keys)
    if settings.admin_keys:
        app.include_router(admin.router)
    app.include_router(feedback.router if settings.feedback else feedback.off, dependencies=keys)
    app.include_router(health.router)
    if settings.open_inference:
        app.include_router(v2.metadata, dependencies=keys)
        app.include_router(v2.health)
    app.include_router(page.router)
    app.include_router(docs.router)
    return app


def create_engine(
    settings: Settings,
    telemetry: Telemetry,
    load: Mapping[str, Load] | None = None,
    on_failure: Callable[[], None] = lambda: None,
    on_commit: Callable[[str, Path], None] | None = None,
) -> EngineCore:
    """The engine of the settings, in this process.

    Args:
        settings: of the service.
        telemetry: the metrics.
        load: as for `create_app`.
        on_failure: as for `create_app`.
        on_commit: see `Swaps`.

    Raises:
        ModelError: a bundle has no valid card, or two have the same name.
    """
    folders = bundle_folders(settings) if load is None else {}
    load_lane = partial(load_bundle, engine=settings.engine, threads=settings.threads)

    def load_folder(folder: Path) -> list[Load]:
        return [partial(load_lane, folder, device=device) for device in settings.devices]

    return EngineCore(
        settings,
        {name: load_folder(folder) for name, folder in folders.items()}
        if load is None
        else {name: [each] for name, each in load.items()},
        telemetry,
        load_folder=load_folder,
        folders=folders,
        on_failure=on_failure,
        on_commit=on_commit,
    )


def bundle_folders(settings: Settings) -> dict[str, Path]:
    """Name to folder of each bundle in the settings.

    Raises:
        CardError: the card of a bundle is missing or invalid.
        BundleError: two bundles have the same name, or none is named and the default one does not exist.
    """
    if missing := missing_weights(settings):
        raise BundleError(missing)
    folders: dict[str, Path] = {}
    for folder in settings.bundles:
        name = read_card(folder / CARD_FILE).name
        if name in folders:
            raise BundleError(
                f"{folders[name]} and {folder} have the same name, {name}: change `name` in one card.json, or serve one"
            )
        folders[name] = folder
    return folders


@cache
def _built() -> FastAPI:
    return create_app()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The application for other ASGI servers, as in `hypercorn app.main:app`. The first call builds it.

    The import of this module builds nothing, because create_app reads the settings and the cards.
    """
    try:
        application = _built()
    except (ModelError, ValidationError) as error:
        if scope["type"] != "lifespan":
            raise
        messages = error_messages(error) if isinstance(error, ValidationError) else [str(error)]
    else:
        await application(scope, receive, send)
        return
    # Of an exception, servers conclude that the application has no lifespan, and they serve without it.
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "\n".join(messages)})
