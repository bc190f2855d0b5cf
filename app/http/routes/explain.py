"""POST /explain: one picture in, and which of its parts speak for a class."""

import base64
import time
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
from fastapi import APIRouter, Depends, Header, Query, Request
from numpy.typing import NDArray
from pydantic import Field
from starlette.responses import Response

from app.http.deadline import in_time
from app.http.problems import UnknownLabel, documented
from app.http.routes.predict import BINARY, WRONG, PredictParams, RequestTimeout, body, record
from app.http.schemas import ExplainedView, Explanation, ModelName, image_result
from app.http.upload import Upload
from app.serving.service import ClassifiedImage, Service, service_of
from model import EngineError, ImageError, PreprocessedImage, overlay, png

router = APIRouter(tags=["explain"])


class ExplainParams(PredictParams):
    """The parameters of the query."""

    label: Annotated[str | None, Field(description="The class to explain. Else the likeliest.")] = None
    format: Annotated[Literal["json", "png"], Field(description="Numbers, or the picture with the map over it.")] = (
        "json"
    )


class _Drawn(NamedTuple):
    """The number of the class that is explained, what was drawn for it, and the seconds that this took."""

    chosen: int
    found: list[ExplainedView] | bytes
    seconds: float


METHOD = (
    "class activation map (Zhou et al. 2016): what each cell of the last stage adds to the class's logit; its positive "
    "part is Grad-CAM (Selvaraju et al. 2017)"
)


@router.post(
    "/explain",
    response_model=Explanation,
    openapi_extra=body(BINARY),
    responses={
        200: {"content": {"image/png": {"schema": BINARY}}},
        **documented(*WRONG, UnknownLabel),
    },
)
async def explain(
    request: Request,
    service: Annotated[Service, Depends(service_of)],
    asked: Annotated[ExplainParams, Query()],
    x_request_timeout: Annotated[
        RequestTimeout, Header(description="Seconds to the answer, if fewer than the setting's.")
    ] = None,
) -> Response:
    """Say which parts of one picture speak for a class, and which against it.

    Send it as for /predict. The answer is its result there, and of each view the pixels that the network saw and a grid
    of what each part of them adds to the class's logit; or, with `format=png`, the picture, its longer side at most
    1,024 pixels, with what speaks for the class drawn over it.
    """
    card = service.classifier.card
    asked.check(len(card.labels))
    index = None if asked.label is None else _index(asked.label, card.labels)
    settings = service.settings
    min_confidence = settings.min_confidence if asked.min_confidence is None else asked.min_confidence

    def draw(upload: Upload, answer: ClassifiedImage) -> _Drawn:
        began = time.monotonic()
        chosen = answer.prediction.top_k(1)[0].index if index is None else index
        if answer.prediction.maps is None:
            raise EngineError(f"the network of {card.name} has no class-activation maps: send the image to /predict")
        maps = answer.prediction.maps[:, chosen]
        if asked.format == "json":
            found: list[ExplainedView] | bytes = _views(answer.picture, maps)
        else:
            found = png(overlay(upload.data, answer.picture, maps, max_pixels=settings.max_pixels))
        return _Drawn(chosen, found, time.monotonic() - began)

    (upload,), outcome = await in_time(
        request,
        service,
        x_request_timeout,
        1,
        lambda uploads, ends: service.explain(
            uploads[0], asked.views or settings.views, partial(draw, uploads[0]), deadline=ends
        ),
    )
    if isinstance(outcome, ImageError):
        record(service, [outcome], min_confidence)
        raise outcome
    answer, drawn = outcome
    record(service, [answer], min_confidence)
    for name, seconds in (
        ("decode", answer.decode),
        ("queue", answer.queued),
        ("inference", answer.inference),
        ("draw", drawn.seconds),
    ):
        request.state.timings[name] = seconds * 1000
    if isinstance(drawn.found, bytes):
        return Response(drawn.found, media_type="image/png")
    explanation = Explanation(
        model=ModelName(name=card.name, version=card.version),
        result=image_result(upload.filename, answer.picture, answer.prediction, asked.top_k, min_confidence),
        label=card.labels[drawn.chosen],
        index=drawn.chosen,
        probability=round(float(answer.prediction.probabilities[drawn.chosen]), 6),
        method=METHOD,
        views=drawn.found,
    )
    return Response(explanation.model_dump_json(), media_type="application/json")


def _index(label: str, labels: list[str]) -> int:
    """The number of the class of this name, in capitals or not."""
    names = [name.casefold() for name in labels]
    try:
        return names.index(label.casefold())
    except ValueError as error:
        raise UnknownLabel(f"there is no class {label!r}: choose one of {', '.join(labels)}") from error


def _views(picture: PreprocessedImage, maps: NDArray[np.float32]) -> list[ExplainedView]:
    return [
        ExplainedView(
            box=(round(left, 3), round(top, 3), round(right, 3), round(bottom, 3)),
            input="data:image/png;base64," + base64.b64encode(png(pixels)).decode(),
            map=[[round(value, 6) for value in row] for row in cells.tolist()],
        )
        for (left, top, right, bottom), pixels, cells in zip(picture.boxes, picture.pixels, maps, strict=True)
    ]
