"""POST /predict: pictures in, ranked classes out."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from starlette.responses import Response

from app.http.deadline import in_time
from app.http.problems import (
    BadUpload,
    BodyTooLarge,
    DeadlinePassed,
    InvalidTopK,
    TooManyFiles,
    Unauthorized,
    UnsupportedBody,
    UploadTooSlow,
    documented,
    problem_of,
    slug_of,
)
from app.http.schemas import ImageProblem, ImageResult, ModelName, Predictions, image_result
from app.http.upload import FIELD, Upload
from app.serving.errors import NotAlive, NotReady, QueueFull, TooManyUploads
from app.serving.service import ClassifiedImage, Service, service_of
from model import MAX_VIEWS, ImageError, ImageTooLarge, UnreadableImage, UnsupportedImage

router = APIRouter(tags=["predict"])

BINARY = {"type": "string", "format": "binary"}


def body(files: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI is told of a request's body, the parts named `file` being described by `files`."""
    form = {"type": "object", "required": [FIELD], "properties": {FIELD: files}}
    raw = {"image/*": {"schema": BINARY}, "application/octet-stream": {"schema": BINARY}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, **raw}}}


WRONG: tuple[type[Exception], ...] = (
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
    RequestValidationError,
    Exception,
    QueueFull,
    TooManyUploads,
    NotReady,
    NotAlive,
    DeadlinePassed,
)
"""What can be wrong with a request that brings pictures."""


class PredictParams(BaseModel):
    """The parameters of the query."""

    model_config = ConfigDict(frozen=True)

    top_k: Annotated[int, Field(description="How many classes to return, likeliest first.")] = 5
    views: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_VIEWS,
            description="Views of a large, oblong picture to average; 1 is the test transform alone.",
        ),
    ] = None
    min_confidence: Annotated[
        FiniteFloat | None,
        Field(ge=0, le=1, description="Least probability of an accepted answer. Else the setting counts."),
    ] = None

    def check(self, classes: int) -> None:
        """Raises:
        InvalidTopK: more are asked for than there are, or none.
        """
        if not 1 <= self.top_k <= classes:
            raise InvalidTopK(f"top_k is {self.top_k}: choose 1 to {classes}")


RequestTimeout = Annotated[FiniteFloat | None, Field(gt=0)]


@router.post(
    "/predict",
    response_model=Predictions,
    openapi_extra=body({"type": "array", "items": BINARY}),
    responses=documented(*WRONG),
)
async def predict(
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    asked: Annotated[PredictParams, Query()],
    x_request_timeout: Annotated[
        RequestTimeout, Header(description="Seconds to the answer, if fewer than the setting's.")
    ] = None,
) -> Response:
    """Classify one picture or several.

    Send them as multipart/form-data parts named `file`, or one picture as the raw body with its image/* type. Of
    several, a bad one carries its own `problem` while the others are answered.
    """
    card = service.classifier.card
    asked.check(len(card.labels))
    settings = service.settings
    min_confidence = settings.min_confidence if asked.min_confidence is None else asked.min_confidence
    uploads, outcomes = await in_time(
        request,
        service,
        x_request_timeout,
        settings.max_files,
        lambda uploads, ends: service.classify(uploads, asked.views or settings.views, deadline=ends),
    )
    record(service, outcomes, min_confidence)
    if len(outcomes) == 1 and isinstance(outcomes[0], ImageError):
        raise outcomes[0]

    answers = [outcome for outcome in outcomes if isinstance(outcome, ClassifiedImage)]
    for name in ("decode", "queued", "inference"):
        label = "queue" if name == "queued" else name
        request.state.timings[label] = max((getattr(answer, name) for answer in answers), default=0.0) * 1000
    request_id = request.state.request_id
    predictions = Predictions(
        model=ModelName(name=card.name, version=card.version),
        results=[
            _result(upload, outcome, asked.top_k, min_confidence, request_id)
            for upload, outcome in zip(uploads, outcomes, strict=True)
        ],
    )
    # Made JSON here, for FastAPI would validate it again before it did.
    return Response(predictions.model_dump_json(), media_type="application/json")


async def predict_directly(request: Request) -> Response:
    """`predict`, without FastAPI's dependencies: the same answer in less time."""
    return await predict(
        request,
        request.app.state.service,
        _asked(request.scope["query_string"]),
        _patience(request.headers.get("x-request-timeout")),
    )


@lru_cache(1024)
def _asked(query: bytes) -> PredictParams:
    try:
        return PredictParams.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        raise _invalid(error, "query") from error


_patience_of = TypeAdapter[float | None](RequestTimeout).validate_python


def _patience(header: str | None) -> float | None:
    try:
        return _patience_of(header)
    except ValidationError as error:
        raise _invalid(error, "header", "x-request-timeout") from error


def _invalid(error: ValidationError, *where: str) -> RequestValidationError:
    return RequestValidationError([{**each, "loc": (*where, *each["loc"])} for each in error.errors()])


(route,) = (each for each in router.routes if isinstance(each, APIRoute))


def record(service: Service, outcomes: Sequence[ClassifiedImage | ImageError], min_confidence: float) -> None:
    """Tell the telemetry of every picture."""
    for outcome in outcomes:
        if isinstance(outcome, ImageError):
            service.telemetry.image_rejected(slug_of(outcome))
        else:
            (first,) = outcome.prediction.top_k(1)
            service.telemetry.image_classified(
                label=first.label,
                confidence=first.probability,
                accepted=outcome.prediction.accepted(min_confidence),
                decode=outcome.decode,
                queue=outcome.queued,
                inference=outcome.inference,
            )


def _result(
    upload: Upload, outcome: ClassifiedImage | ImageError, top_k: int, min_confidence: float, request_id: str
) -> ImageResult | ImageProblem:
    if isinstance(outcome, ImageError):
        return ImageProblem(filename=upload.filename, problem=problem_of(outcome, request_id))
    return image_result(upload.filename, outcome.picture, outcome.prediction, top_k, min_confidence)
