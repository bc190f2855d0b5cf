"""POST /predict: images in, ranked classes out."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.parameters import PredictParams
from app.http.problems import documented, problem_of
from app.http.routes.images import BINARY, ERRORS, check, name_of, openapi, record, sources_of
from app.http.schemas import ImageProblem, ImageResult, Predictions, image_result
from app.http.upload import is_small, read_uploads
from app.serving.images import ClassifiedImage, Upload, classify
from model import ImageError

router = APIRouter(tags=["predict"])


@router.post(
    "/predict",
    response_model=Predictions,
    openapi_extra=openapi(PredictParams, {"type": "array", "items": BINARY}),
    responses=documented(*ERRORS),
)
async def predict(request: Request) -> Response:
    """Classify one image or several.

    Send them as multipart/form-data parts named `file`, or one image as the raw body with its image/* type. If one of
    several images is bad, its result has a `problem` and the others are classified.
    """
    checked = check(request, PredictParams)
    service, settings, min_confidence = checked.service, checked.service.settings, checked.min_confidence
    name = checked.model.name

    async with checked.deadline as deadline:
        with service.upload(name, deadline=deadline.at, small=is_small(request)):
            uploads = await read_uploads(request, max_files=settings.max_files, parameters=PredictParams.model_fields)
        with service.engine.admit(name, len(uploads), deadline=deadline.at) as lease:
            sources = sources_of(request, settings, [upload.data for upload in uploads])
            outcomes = await classify(uploads, lease, service.decoder, checked.views, sources=sources)

    record(request, service, name, outcomes, min_confidence)
    if len(outcomes) == 1 and isinstance(outcomes[0], ImageError):
        raise outcomes[0]
    predictions = Predictions(
        model=name_of(lease.model.card),
        results=[
            _result(upload, outcome, checked.top_k, min_confidence, request.state.request_id)
            for upload, outcome in zip(uploads, outcomes, strict=True)
        ],
    )
    # Serialised here, because FastAPI would validate it again before.
    return Response(predictions.model_dump_json(), media_type="application/json")


def _result(
    upload: Upload, outcome: ClassifiedImage | ImageError, top_k: int, min_confidence: float, request_id: str
) -> ImageResult | ImageProblem:
    if isinstance(outcome, ImageError):
        return ImageProblem(filename=upload.filename, problem=problem_of(outcome, request_id))
    return image_result(upload.filename, outcome.image, outcome.prediction, top_k, min_confidence)
