"""What the routes that take images share: checks, documentation, possible errors, metrics and timings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from fastapi import Request

from app.engine.api import Batched, ModelInfo, Source
from app.engine.errors import NotAlive, NotReady, QueueFull, TooManyUploads, UnknownModel
from app.http.auth import check_key
from app.http.deadline import Deadline
from app.http.parameters import PredictParams, documentation, query_of, timeout_of
from app.http.problems import (
    BadUpload,
    BodyTooLarge,
    DeadlinePassed,
    InvalidParameter,
    InvalidTopK,
    TooManyFiles,
    Unauthorized,
    UnknownLabel,
    UnsupportedBody,
    UploadTooSlow,
    slug_of,
)
from app.http.schemas import ModelName
from app.http.upload import FIELD
from app.serving.images import ClassifiedImage
from app.serving.service import Service
from app.settings import Settings
from model import ImageError, ImageTooLarge, ModelCard, UnreadableImage, UnsupportedImage

BINARY = {"type": "string", "format": "binary"}
_BASE64 = {
    "type": "string",
    "contentEncoding": "base64",
    "description": "An image file in base64, also as a data: URL.",
}
IN_JSON: dict[str, Any] = {
    "oneOf": [
        {
            "title": "ImageInJson",
            "type": "object",
            "required": ["image"],
            "properties": {"image": _BASE64},
            "additionalProperties": False,
        },
        {
            "title": "ImagesInJson",
            "type": "object",
            "required": ["instances"],
            "properties": {
                "instances": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "oneOf": [
                            _BASE64,
                            {
                                "title": "Base64",
                                "type": "object",
                                "required": ["b64"],
                                "properties": {"b64": _BASE64},
                            },
                        ]
                    },
                }
            },
            "additionalProperties": False,
        },
    ]
}
"""Schema of the forms of JSON with images."""

ERRORS: tuple[type[Exception], ...] = (
    BadUpload,
    Unauthorized,
    UnknownModel,
    UploadTooSlow,
    BodyTooLarge,
    ImageTooLarge,
    TooManyFiles,
    UnsupportedBody,
    UnsupportedImage,
    UnreadableImage,
    InvalidTopK,
    InvalidParameter,
    Exception,
    QueueFull,
    TooManyUploads,
    NotReady,
    NotAlive,
    DeadlinePassed,
)
"""The errors of a request with images."""


def openapi(params: type[PredictParams], files: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI description of the parameters and the body.

    Args:
        params: of the query.
        files: schema of the multipart parts named `file`.
    """
    form = {"type": "object", "required": [FIELD], "properties": {FIELD: files}}
    content = {
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": IN_JSON},
        "image/*": {"schema": BINARY},
        "application/octet-stream": {"schema": BINARY},
    }
    return {"parameters": documentation(params), "requestBody": {"required": True, "content": content}}


P = TypeVar("P", bound=PredictParams)


@dataclass(frozen=True, slots=True)
class Checked(Generic[P]):
    """A request whose API key and parameters are valid. Its body has not been read.

    Attributes:
        service: of the application.
        model: the one that is served now.
        params: of the query.
        top_k: number of classes to return.
        views: largest number of views of an image.
        min_confidence: lowest probability of an accepted result.
        deadline: of the request; not entered yet.
    """

    service: Service
    model: ModelInfo
    params: P
    top_k: int
    views: int
    min_confidence: float
    deadline: Deadline


def check(request: Request, params: type[P]) -> Checked[P]:
    """Check the API key and the parameters of a request, and choose its model.

    Raises:
        Unauthorized: the key is missing or wrong.
        UnknownModel: there is no model with this name.
        NotReady, NotAlive: the model is not loaded or does not work.
        InvalidParameter, InvalidTopK: a parameter is malformed or out of range.
    """
    check_key(request)
    service: Service = request.app.state.service
    settings = service.settings
    query = query_of(request, params)
    catalog = service.engine.catalog
    request.state.model = catalog.resolve(query.model)  # a refused request is counted for its model too
    model = catalog.get(request.state.model)
    return Checked(
        service,
        model,
        query,
        top_k=query.top_k_of(len(model.card.labels)),
        views=query.views or settings.views,
        min_confidence=settings.min_confidence if query.min_confidence is None else query.min_confidence,
        deadline=Deadline(request, service, timeout_of(request)),
    )


def sources_of(request: Request, settings: Settings, files: Sequence[bytes | None]) -> list[Source]:
    """The sources of the images of a request; none if the settings do not say that predictions are stored.

    Args:
        request: with its ID.
        settings: of the service.
        files: of the images; None for one that came as pixels.
    """
    if not settings.feedback:
        return []
    images = settings.feedback_images
    return [Source(request.state.request_id, i, file if images else None) for i, file in enumerate(files)]


def name_of(card: ModelCard) -> ModelName:
    """The name and version of a model."""
    return ModelName(name=card.name, version=card.version)


def index_of(label: str, labels: list[str]) -> int:
    """The number of the class with this name, in upper or lower case unless two classes differ in that only.

    Raises:
        UnknownLabel: there is no class with this name.
    """
    if label in labels:
        return labels.index(label)
    names = [name.casefold() for name in labels]
    try:
        return names.index(label.casefold())
    except ValueError as error:
        raise UnknownLabel(f"there is no class {label!r}: choose one of {', '.join(labels)}") from error


def record(
    request: Request,
    service: Service,
    model: str,
    outcomes: Sequence[ClassifiedImage | Batched | ImageError],
    min_confidence: float,
) -> None:
    """Count every image in the metrics, and note the times of the stages.

    The times are those of Server-Timing, the longest of each stage.

    Args:
        request: with the timings.
        service: with the metrics.
        model: name of the one that classified the images.
        outcomes: of the images. A `Batched` was not decoded.
        min_confidence: lowest probability of an accepted result.
    """
    telemetry = service.telemetry
    timings = dict.fromkeys(("decode", "queue", "inference"), 0.0)
    for outcome in outcomes:
        if isinstance(outcome, ImageError):
            telemetry.image_rejected(model, slug_of(outcome))
            continue
        (first,) = outcome.prediction.top_k(1)
        stages = {"queue": outcome.queued, "inference": outcome.inference}
        if isinstance(outcome, ClassifiedImage):
            stages = {"decode": outcome.decode, **stages}
        telemetry.image_classified(
            model,
            label=first.label,
            confidence=first.probability,
            verdict=outcome.prediction.verdict(min_confidence),
            stages=stages,
        )
        for stage, seconds in stages.items():
            timings[stage] = max(timings[stage], seconds * 1000)
    request.state.timings.update(timings)
