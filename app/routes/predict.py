"""POST /predict: pictures in, ranked classes out."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import FiniteFloat

from app.middleware import ClientGone
from app.problems import (
    BadUpload,
    BodyTooLarge,
    DeadlinePassed,
    InvalidTopK,
    NotReady,
    QueueFull,
    TooManyFiles,
    UnsupportedBody,
    documented,
    problem_of,
)
from app.schemas import Answered, ModelName, Predictions, Ranked, Refused
from app.service import Answer, Service, service_of
from app.upload import FIELD, Upload, read_uploads
from model import MAX_VIEWS, ImageError, ImageTooLarge, UnreadableImage, UnsupportedImage

router = APIRouter(tags=["predict"])

T = TypeVar("T")

_BINARY = {"type": "string", "format": "binary"}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {FIELD: {"type": "array", "items": _BINARY}},
                }
            },
            "image/*": {"schema": _BINARY},
            "application/octet-stream": {"schema": _BINARY},
        },
    }
}


@router.post(
    "/predict",
    openapi_extra=_BODY,
    responses=documented(
        BadUpload,
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
        NotReady,
        DeadlinePassed,
    ),
)
async def predict(
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    top_k: Annotated[int, Query(description="How many classes to return, likeliest first.")] = 5,
    views: Annotated[
        int | None,
        Query(
            ge=1,
            le=MAX_VIEWS,
            description="Views of a large, oblong picture to average; 1 is the test transform alone.",
        ),
    ] = None,
    min_confidence: Annotated[
        FiniteFloat | None,
        Query(ge=0, le=1, description="Least probability of an accepted answer. Else the setting counts."),
    ] = None,
) -> Predictions:
    """Classify one picture or several.

    Send them as multipart/form-data parts named `file`, or one picture as the raw body with its image/* type. Of
    several, a bad one carries its own `problem` while the others are answered.
    """
    card = service.classifier.card
    if not 1 <= top_k <= len(card.labels):
        raise InvalidTopK(f"top_k is {top_k}: choose 1 to {len(card.labels)}")
    settings = service.settings
    limit = settings.timeout
    if min_confidence is None:
        min_confidence = settings.min_confidence
    deadline = asyncio.timeout_at(asyncio.get_running_loop().time() + limit - _elapsed(request))
    try:
        async with deadline:
            uploads = await read_uploads(request, max_files=settings.max_files)
            outcomes = await _while_connected(request, service.classify(uploads, views or settings.views))
    except TimeoutError as error:
        if not deadline.expired():
            raise  # the engine's own
        raise DeadlinePassed(f"no answer within {limit:g} s: send fewer or smaller pictures, or try later") from error
    if len(outcomes) == 1 and isinstance(outcomes[0], ImageError):
        raise outcomes[0]

    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    for name in ("decode", "queued", "inference"):
        label = "queue" if name == "queued" else name
        request.state.timings[label] = max((getattr(answer, name) for answer in answers), default=0.0) * 1000
    request_id = request.state.request_id
    return Predictions(
        model=ModelName(name=card.name, version=card.version),
        results=[
            _result(upload, outcome, top_k, min_confidence, request_id)
            for upload, outcome in zip(uploads, outcomes, strict=True)
        ],
    )


def _result(
    upload: Upload, outcome: Answer | ImageError, top_k: int, min_confidence: float, request_id: str
) -> Answered | Refused:
    if isinstance(outcome, ImageError):
        return Refused(filename=upload.filename, problem=problem_of(outcome, request_id))
    ranking = [
        Ranked(label=ranked.label, index=ranked.index, probability=round(ranked.probability, 6))
        for ranked in outcome.prediction.top_k(top_k)
    ]
    picture, prediction = outcome.picture, outcome.prediction
    return Answered(
        filename=upload.filename,
        width=picture.width,
        height=picture.height,
        top_k=ranking,
        in_distribution=round(prediction.in_distribution, 6),
        accepted=prediction.accepted(min_confidence),
        views=len(picture.pixels),
        warnings=list(picture.warnings),
    )


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, given up as soon as the caller hangs up.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()


def _elapsed(request: Request) -> float:
    """Seconds since the request arrived."""
    return time.monotonic() - float(request.state.arrived)


async def _hang_up(request: Request) -> None:
    """Return when the caller hangs up. Its body has been read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
