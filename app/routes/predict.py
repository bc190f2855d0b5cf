"""POST /predict: pictures in, ranked classes out."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import FiniteFloat
from starlette.responses import Response

from app.middleware import ClientGone
from app.problems import (
    BadUpload,
    BodyTooLarge,
    DeadlinePassed,
    InvalidTopK,
    NotAlive,
    NotReady,
    QueueFull,
    TooManyFiles,
    TooManyUploads,
    Unauthorized,
    UnsupportedBody,
    UploadTooSlow,
    documented,
    problem_of,
    slug_of,
)
from app.schemas import Answered, ModelName, Predictions, Ranked, Refused
from app.service import Answer, Service, service_of
from app.upload import FIELD, Upload, read_uploads
from model import MAX_VIEWS, ImageError, ImageTooLarge, UnreadableImage, UnsupportedImage

router = APIRouter(tags=["predict"])

T = TypeVar("T")

BINARY = {"type": "string", "format": "binary"}


def body(files: dict[str, Any]) -> dict[str, Any]:
    """What OpenAPI is told of a request's body, the parts named `file` being described by `files`."""
    form = {"type": "object", "required": [FIELD], "properties": {FIELD: files}}
    raw = {"image/*": {"schema": BINARY}, "application/octet-stream": {"schema": BINARY}}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}, **raw}}}


@router.post(
    "/predict",
    response_model=Predictions,
    openapi_extra=body({"type": "array", "items": BINARY}),
    responses=documented(
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
    x_request_timeout: Annotated[
        FiniteFloat | None, Header(gt=0, description="Seconds to the answer, if fewer than the setting's.")
    ] = None,
) -> Response:
    """Classify one picture or several.

    Send them as multipart/form-data parts named `file`, or one picture as the raw body with its image/* type. Of
    several, a bad one carries its own `problem` while the others are answered.
    """
    card = service.classifier.card
    if not 1 <= top_k <= len(card.labels):
        raise InvalidTopK(f"top_k is {top_k}: choose 1 to {len(card.labels)}")
    settings = service.settings
    if min_confidence is None:
        min_confidence = settings.min_confidence
    uploads, outcomes = await in_time(
        request,
        service,
        x_request_timeout,
        settings.max_files,
        lambda uploads, ends: service.classify(uploads, views or settings.views, deadline=ends),
    )
    record(service, outcomes, min_confidence)
    if len(outcomes) == 1 and isinstance(outcomes[0], ImageError):
        raise outcomes[0]

    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    for name in ("decode", "queued", "inference"):
        label = "queue" if name == "queued" else name
        request.state.timings[label] = max((getattr(answer, name) for answer in answers), default=0.0) * 1000
    request_id = request.state.request_id
    predictions = Predictions(
        model=ModelName(name=card.name, version=card.version),
        results=[
            _result(upload, outcome, top_k, min_confidence, request_id)
            for upload, outcome in zip(uploads, outcomes, strict=True)
        ],
    )
    # Made JSON here, for FastAPI would validate it again before it did.
    return Response(predictions.model_dump_json(), media_type="application/json")


async def in_time(
    request: Request,
    service: Service,
    patience: float | None,
    max_files: int,
    work: Callable[[list[Upload], float], Coroutine[Any, Any, T]],
) -> tuple[list[Upload], T]:
    """Read a request's pictures and do the work for them, within its deadline and while its caller is there.

    Args:
        request: the body of which has not been read.
        service: whose settings hold.
        patience: seconds to the answer, if fewer than the setting's.
        max_files: most pictures in it.
        work: is given the pictures and the deadline (time.monotonic).

    Returns:
        The pictures, and what the work gave.

    Raises:
        UploadTooSlow: the body was not here in time.
        DeadlinePassed: the work was not done in time.
        ClientGone: nobody waits for it any more.
        Exception: what reading or working raised.
    """
    limit = min(service.settings.timeout, patience or service.settings.timeout)
    ends = request.state.arrived + limit
    uploads = None
    deadline = asyncio.timeout_at(asyncio.get_running_loop().time() + ends - time.monotonic())
    try:
        async with deadline:
            with service.uploading():
                uploads = await read_uploads(request, max_files=max_files)
            return uploads, await _while_connected(request, work(uploads, ends))
    except TimeoutError as error:
        if not deadline.expired():
            raise  # the engine's own
        if uploads is None:
            raise UploadTooSlow(f"the body was not here within {limit:g} s: send smaller pictures") from error
        raise DeadlinePassed(f"no answer within {limit:g} s: send fewer or smaller pictures, or try later") from error


def record(service: Service, outcomes: Sequence[Answer | ImageError], min_confidence: float) -> None:
    """Tell the telemetry of every picture."""
    for outcome in outcomes:
        if isinstance(outcome, ImageError):
            service.telemetry.refused_picture(slug_of(outcome))
        else:
            (first,) = outcome.prediction.top_k(1)
            service.telemetry.answered_picture(
                label=first.label,
                confidence=first.probability,
                accepted=outcome.prediction.accepted(min_confidence),
                decode=outcome.decode,
                queue=outcome.queued,
                inference=outcome.inference,
            )


def _result(
    upload: Upload, outcome: Answer | ImageError, top_k: int, min_confidence: float, request_id: str
) -> Answered | Refused:
    if isinstance(outcome, ImageError):
        return Refused(filename=upload.filename, problem=problem_of(outcome, request_id))
    return answered(upload, outcome, top_k, min_confidence)


def answered(upload: Upload, answer: Answer, top_k: int, min_confidence: float) -> Answered:
    """What the caller is told of a picture."""
    picture, prediction = answer.picture, answer.prediction
    ranking = [
        Ranked(label=ranked.label, index=ranked.index, probability=round(ranked.probability, 6))
        for ranked in prediction.top_k(top_k)
    ]
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


async def _hang_up(request: Request) -> None:
    """Return when the caller hangs up. Its body has been read, so nothing else can arrive."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
