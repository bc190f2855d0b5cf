"""The Open Inference Protocol v2 under /v2: https://github.com/kserve/open-inference-protocol.

The extensions are those of Triton: binary tensor data, classification, model configuration and statistics.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from app import __version__
from app.engine.api import Batched, ModelState
from app.engine.errors import NotAlive, NotReady, TooManyUploads, UnknownModel
from app.http.auth import check_key
from app.http.deadline import Deadline
from app.http.oip.errors import documented
from app.http.oip.inference import build_response, read_request
from app.http.oip.interface import ServedModel, classify_inputs, find, names_of
from app.http.oip.messages import HEADER_LENGTH, parse_object
from app.http.oip.schemas import (
    INDEX_REQUEST,
    INFERENCE_REQUEST,
    IndexEntry,
    InferenceResponse,
    ModelConfig,
    ModelList,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
    Statistics,
)
from app.http.oip.statistics import statistics_of
from app.http.parameters import TIMEOUT_HEADER, path_parameter, timeout_of
from app.http.problems import (
    BadUpload,
    BodyTooLarge,
    DeadlinePassed,
    InvalidInference,
    InvalidTopK,
    Unauthorized,
    UploadTooSlow,
)
from app.http.routes.images import ERRORS, record, sources_of
from app.http.upload import is_small, read_body
from app.serving.images import ClassifiedImage
from app.serving.service import Service
from model import ImageError, Prediction

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")
"""Triton's names of the extensions that are implemented."""

_INDEX_BYTES = 1_000

inference = APIRouter(tags=["open inference protocol"])
"""Inference. Its routes check the API key themselves."""

metadata = APIRouter(tags=["open inference protocol"])
"""Descriptions of the server and its models."""

health = APIRouter(tags=["open inference protocol"])
"""Probes, which need no API key."""

_MODEL = "/v2/models/{model_name}"
_VERSION = f"{_MODEL}/versions/{{model_version}}"
_STATES: Mapping[ModelState, Literal["READY", "LOADING", "UNAVAILABLE"]] = {
    "ready": "READY",
    "loading": "LOADING",
    "failed": "UNAVAILABLE",
}


async def infer(request: Request) -> Response:
    """Classify images with a model.

    NAME takes pixels, and NAME-image takes encoded images. Tensors are in the JSON, or follow it as binary data.
    """
    check_key(request)
    service: Service = request.app.state.service
    settings = service.settings
    name = request.state.model = _model(request).model.name

    async with Deadline(request, service, timeout_of(request)) as deadline:
        with service.upload(name, deadline=deadline.at, small=is_small(request)):
            body = await read_body(request)
        served = _model(request)  # the weights may have been replaced meanwhile
        parsed, inputs = await read_request(request, body, served, service)
        with service.engine.admit(name, len(inputs), deadline=deadline.at) as lease:
            if lease.model.card.input != served.model.card.input:
                raise NotReady("the weights were replaced by others with another input: send the request again")
            served = replace(served, model=lease.model)
            sources = sources_of(request, settings, inputs if isinstance(inputs, list) else [None] * len(inputs))
            outcomes = await classify_inputs(inputs, lease, service.decoder, settings.views, sources)
            record(request, service, name, outcomes, settings.min_confidence)
            return await build_response(request, parsed, served, service, _predictions(outcomes))


def _predictions(outcomes: Sequence[ClassifiedImage | Batched | ImageError]) -> list[Prediction]:
    """The predictions, or the first error: the protocol has none for one of several images."""
    predictions = []
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, ImageError):
            raise outcome if len(outcomes) == 1 else type(outcome)(f"element {number} of the input: {outcome}")
        predictions.append(outcome.prediction)
    return predictions


async def server_metadata() -> ServerMetadata:
    """The name, version and extensions of the server."""
    return ServerMetadata(name="tenfold", version=__version__, extensions=list(EXTENSIONS))


async def model_metadata(request: Request) -> ModelMetadata:
    """The inputs and outputs of a model."""
    return _model(request).metadata


async def model_config(request: Request) -> ModelConfig:
    """The configuration of a model, with the largest batch."""
    return _model(request).config


async def model_statistics(request: Request) -> Statistics:
    """Counts and times of a model."""
    return await _statistics(request.app.state.service, [_model(request)])


async def all_statistics(request: Request) -> Statistics:
    """Counts and times of all models that are loaded."""
    service: Service = request.app.state.service
    catalog = service.engine.catalog
    names = [name for name, bundle in names_of(catalog) if catalog.state(bundle) == "ready"]
    return await _statistics(service, [_find(service, name) for name in names])


async def _statistics(service: Service, models: Sequence[ServedModel]) -> Statistics:
    # In a thread, because with several processes it reads files of all.
    return await asyncio.to_thread(
        lambda: Statistics(model_stats=[statistics_of(model, service.telemetry) for model in models])
    )


async def repository_index(request: Request) -> list[IndexEntry]:
    """All models with their states."""
    service: Service = request.app.state.service
    async with Deadline(request, service):
        body = await read_body(request)
    if len(body) > _INDEX_BYTES:
        raise BodyTooLarge(f"the body has more than {_INDEX_BYTES} bytes: send an object with ready, or nothing")
    only_ready = parse_object(body).get("ready", False) if body else False
    if not isinstance(only_ready, bool):
        raise InvalidInference("ready is neither true nor false: send one of them")
    entries = [_entry(service, name, bundle) for name, bundle in names_of(service.engine.catalog)]
    return [entry for entry in entries if entry.state == "READY" or not only_ready]


def _entry(service: Service, name: str, bundle: str) -> IndexEntry:
    version, reason = "", ""
    try:
        version = _find(service, name).version
    except (NotReady, NotAlive) as error:
        reason = str(error)
    return IndexEntry(name=name, version=version, state=_STATES[service.engine.catalog.state(bundle)], reason=reason)


async def list_models(request: Request) -> ModelList:
    """The names of all models, as KServe returns them."""
    return ModelList(models=[name for name, _ in names_of(request.app.state.service.engine.catalog)])


async def live(request: Request) -> ServerLive:
    """Whether the process and its engines work. If they do not, only a restart helps."""
    service: Service = request.app.state.service
    service.engine.check_alive()
    service.decoder.check_alive()
    return ServerLive(live=True)


async def ready(request: Request) -> ServerReady:
    """Whether all models are loaded and the service is not shutting down."""
    service: Service = request.app.state.service
    service.check_ready()
    service.decoder.check_alive()
    return ServerReady(ready=True)


async def model_ready(request: Request) -> ModelReady:
    """Whether a model is loaded and its engine works."""
    served = _model(request)
    request.app.state.service.engine.check_alive()
    return ModelReady(name=served.name, ready=True)


def _model(request: Request) -> ServedModel:
    parameters = request.path_params
    return _find(request.app.state.service, parameters["model_name"], parameters.get("model_version"))


def _find(service: Service, name: str, version: str | None = None) -> ServedModel:
    return find(service.engine.catalog, name, version, max_batch=service.settings.max_files)


def _parameters(path: str, headers: Mapping[str, tuple[str, str]] | None = None) -> list[dict[str, Any]]:
    """The OpenAPI parameters of a route."""
    found = [path_parameter(name) for name in ("model_name", "model_version") if f"{{{name}}}" in path]
    for name, (kind, about) in (headers or {}).items():
        found.append({"name": name, "in": "header", "required": False, "schema": {"type": kind}, "description": about})
    return found


_INFER_HEADERS = {
    HEADER_LENGTH.lower(): (
        "integer",
        "Number of bytes of the JSON, if binary data follow. 0 for the data of one image alone.",
    ),
    TIMEOUT_HEADER.lower(): ("number", "Seconds until the response, if fewer than the setting of the service."),
}
_INFER_ERRORS: list[type[Exception]] = [
    InvalidInference,
    *(error for error in ERRORS if error not in (BadUpload, InvalidTopK)),
]


def _name(path: str) -> str:
    """A unique name of a route."""
    return re.sub(r"\W+", "_", path).strip("_")


_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}

for _path in (f"{_MODEL}/infer", f"{_VERSION}/infer"):
    inference.add_api_route(
        _path,
        infer,
        methods=["POST"],
        name=_name(_path),
        response_model=InferenceResponse,
        responses={200: {"content": _BINARY}, **documented(*_INFER_ERRORS)},
        openapi_extra={
            "parameters": _parameters(_path, _INFER_HEADERS),
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": INFERENCE_REQUEST}, **_BINARY},
            },
        },
    )

metadata.add_api_route("/v2", server_metadata, name="v2", responses=documented(Unauthorized))
metadata.add_api_route("/v2/", server_metadata, include_in_schema=False)

metadata.add_api_route("/v2/models", list_models, name="v2_models", responses=documented(Unauthorized))

# Before the routes of one model, which would take "stats" for its name.
metadata.add_api_route("/v2/models/stats", all_statistics, name="v2_models_stats", responses=documented(Unauthorized))

for _prefix in (_MODEL, _VERSION):
    for _path, _endpoint in (
        (_prefix, model_metadata),
        (f"{_prefix}/config", model_config),
        (f"{_prefix}/stats", model_statistics),
    ):
        metadata.add_api_route(
            _path,
            _endpoint,
            name=_name(_path),
            responses=documented(Unauthorized, UnknownModel, NotReady, NotAlive),
            openapi_extra={"parameters": _parameters(_path)},
        )

metadata.add_api_route(
    "/v2/repository/index",
    repository_index,
    methods=["POST"],
    name="v2_repository_index",
    responses=documented(InvalidInference, Unauthorized, UploadTooSlow, BodyTooLarge, TooManyUploads, DeadlinePassed),
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": INDEX_REQUEST}}}},
)

for _path, _probe, _failures in (
    ("/v2/health/live", live, (NotAlive,)),
    ("/v2/health/ready", ready, (NotReady, NotAlive)),
    (f"{_MODEL}/ready", model_ready, (UnknownModel, NotReady, NotAlive)),
    (f"{_VERSION}/ready", model_ready, (UnknownModel, NotReady, NotAlive)),
):
    health.add_api_route(
        _path,
        _probe,
        name=_name(_path),
        responses=documented(*_failures),
        openapi_extra={"parameters": _parameters(_path)},
    )

for _route in (*inference.routes, *metadata.routes, *health.routes):
    if isinstance(_route, APIRoute):  # FastAPI's default is the name of the route
        _route.summary = _route.description.partition(".")[0]
