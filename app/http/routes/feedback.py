"""POST /feedback: the right class of an image that was classified."""

from fastapi import APIRouter, HTTPException, Request

from app.engine.errors import NotAlive, NotReady, TooManyUploads, UnknownModel
from app.feedback.store import NONE, NONE_TEXT, StoreError
from app.http.deadline import Deadline
from app.http.parameters import timeout_of
from app.http.problems import (
    BodyTooLarge,
    DeadlinePassed,
    InvalidParameter,
    NotStored,
    RequestIDReused,
    Unauthorized,
    UnknownLabel,
    UnknownPrediction,
    UploadTooSlow,
    documented,
)
from app.http.routes.images import index_of
from app.http.schemas import Feedback, ModelName, StoredFeedback
from app.http.upload import read_json
from app.serving.service import Service

router = APIRouter(tags=["feedback"])

off = APIRouter()
"""In the place of `router` while the service stores no predictions."""


@router.post(
    "/feedback",
    responses=documented(
        Unauthorized,
        UnknownPrediction,
        UnknownModel,
        UploadTooSlow,
        RequestIDReused,
        BodyTooLarge,
        InvalidParameter,
        UnknownLabel,
        TooManyUploads,
        NotReady,
        NotAlive,
        DeadlinePassed,
        NotStored,
    ),
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": Feedback.model_json_schema()}}}
    },
)
async def feedback(request: Request) -> StoredFeedback:
    """Store the right class of an image, or that it is none of the classes.

    A later label of the same image replaces it, and null removes it.
    """
    service: Service = request.app.state.service
    async with Deadline(request, service, timeout_of(request)):
        given = await read_json(request, Feedback)
        try:
            return await _store(service, given)
        except StoreError as error:
            raise NotStored("the label cannot be stored: the log of the service has the reason") from error


@off.post("/feedback", include_in_schema=False)
async def feedback_is_off() -> None:
    """Report how to switch feedback on."""
    raise HTTPException(404, "This service stores no predictions. TENFOLD_FEEDBACK=FILE switches feedback on")


async def _store(service: Service, given: Feedback) -> StoredFeedback:
    engine = service.engine
    found = await engine.find_prediction(given.request_id, given.index)
    if found is None or given.model not in (None, found.model):
        raise UnknownPrediction(
            f"no prediction for image {given.index} of the request {given.request_id!r} is stored: "
            "send the X-Request-ID of the response within the time that predictions are kept"
        )
    if found.reused:
        raise RequestIDReused(
            f"several requests with different predictions had the ID {given.request_id!r}, so a label may be for any "
            "of them: use each X-Request-ID once, or let the service choose it"
        )
    label = _label_of(given.label, engine.catalog.get(found.model).card.labels)
    right = label == found.predicted
    if await engine.set_label(found.request_id, found.position, label) and label is not None:
        service.telemetry.feedback(found.model, "none" if label == NONE else "right" if right else "wrong")
    return StoredFeedback(
        request_id=found.request_id,
        index=found.position,
        model=ModelName(name=found.model, version=found.version),
        predicted=found.predicted,
        confidence=round(found.confidence, 6),
        label=NONE_TEXT if label == NONE else label,
        right=right,
    )


def _label_of(given: str | None, labels: list[str]) -> str | None:
    """The label as it is stored.

    Raises:
        UnknownLabel: the model has no such class.
    """
    if given is None:
        return None
    try:
        return labels[index_of(given, labels)]
    except UnknownLabel as error:
        if given.casefold() == NONE_TEXT:
            return NONE
        raise UnknownLabel(f"{error}, or {NONE_TEXT!r}") from error
