"""What the routes that take images share: documentation, possible errors, metrics and timings."""

from collections.abc import Sequence
from typing import Any

from fastapi import Request

from app.http.parameters import PredictParams, documentation
from app.http.problems import (
    BadUpload,
    BodyTooLarge,
    DeadlinePassed,
    InvalidParameter,
    InvalidTopK,
    TooManyFiles,
    Unauthorized,
    UnsupportedBody,
    UploadTooSlow,
    slug_of,
)
from app.http.schemas import ModelName
from app.http.upload import FIELD
from app.serving.errors import NotAlive, NotReady, QueueFull, TooManyUploads
from app.serving.images import ClassifiedImage
from app.serving.service import Service
from model import ImageError, ImageTooLarge, ModelCard, UnreadableImage, UnsupportedImage

BINARY = {"type": "string", "format": "binary"}

ERRORS: tuple[type[Exception], ...] = (
    BadUpload,
    Unauthorized,
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
    raw = {"image/*": {"schema": BINARY}, "application/octet-stream": {"schema": BINARY}}
    return {
        "parameters": documentation(params),
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, **raw}},
    }


def name_of(card: ModelCard) -> ModelName:
    """The name and version of a model."""
    return ModelName(name=card.name, version=card.version)


def record(
    request: Request, service: Service, outcomes: Sequence[ClassifiedImage | ImageError], min_confidence: float
) -> None:
    """Count every image in the metrics, and note the longest time of each stage for Server-Timing."""
    timings = dict.fromkeys(("decode", "queue", "inference"), 0.0)
    for outcome in outcomes:
        if isinstance(outcome, ImageError):
            service.telemetry.image_rejected(slug_of(outcome))
            continue
        (first,) = outcome.prediction.top_k(1)
        stages = {"decode": outcome.decode, "queue": outcome.queued, "inference": outcome.inference}
        service.telemetry.image_classified(
            label=first.label,
            confidence=first.probability,
            accepted=outcome.prediction.accepted(min_confidence),
            **stages,
        )
        for stage, seconds in stages.items():
            timings[stage] = max(timings[stage], seconds * 1000)
    request.state.timings.update(timings)
