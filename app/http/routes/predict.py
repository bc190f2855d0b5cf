"""POST /predict: images in, ranked classes out."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.http.parameters import PredictParams
from app.http.problems import documented, problem_of
from app.http.routes.images import BINARY, ERRORS, check, name_of, openapi, record
from app.http.schemas import ImageProblem, ImageResult, Predictions, image_result
from app.http.upload import is_small, read_uploads
from app.serving.images import ClassifiedImage, Upload
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
    service, model, min_confidence = checked.service, checked.model, checked.min_confidence

    async with checked.deadline as deadline:
        with model.admission.upload(deadline=deadline.at, small=is_small(request)):
            uploads = await read_uploads(
                request, max_files=service.settings.max_files, parameters=PredictParams.model_fields
            )
        with model.admission.images(len(uploads), deadline=deadline.at):
            outcomes = await model.classify(uploads, checked.views, deadline=deadline.at)

    record(request, service, model, outcomes, min_confidence, uploads)
    if len(outcomes) == 1 and isinstance(outcomes[0], ImageError):
        raise outcomes[0]
    predictions = Predictions(
        model=name_of(model.card),
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
