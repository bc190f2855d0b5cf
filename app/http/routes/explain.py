"""POST /explain: one image in, and which of its parts speak for a class."""

import base64
import time
from collections.abc import Iterator, Sequence

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.responses import Response

from app.http.parameters import ExplainParams
from app.http.problems import UnknownLabel, documented
from app.http.routes.images import BINARY, ERRORS, check, index_of, name_of, openapi, record, sources_of
from app.http.schemas import ExplainedView, Explanation, image_result
from app.http.upload import is_small, read_uploads
from app.serving.decoding import Decoder, Flow
from app.serving.images import classify
from model import (
    ImageError,
    NotExplainable,
    PreprocessedImage,
    Ranked,
    png,
    view_weights,
)

router = APIRouter(tags=["explain"])

CLASS_ACTIVATION_MAP = (
    "class-activation map (Zhou et al. 2016): what each cell of the last stage adds to the logit of the class. Its "
    "positive part is Grad-CAM (Selvaraju et al. 2017)."
)
GRAD_CAM = (
    "Grad-CAM (Selvaraju et al. 2017) of the last stage, before its ReLU: the channels, each weighted with the mean "
    "gradient of the logit of the class. The values do not add up to the logit."
)


@router.post(
    "/explain",
    response_model=Explanation,
    openapi_extra=openapi(ExplainParams, BINARY),
    responses={
        200: {"content": {"image/png": {"schema": BINARY}}},
        **documented(*ERRORS, UnknownLabel, NotExplainable),
    },
)
async def explain(request: Request) -> Response:
    """Say which parts of one image speak for a class.

    Send the image as for /predict. With `format=png` the response is the image with a heat map drawn over it.
    """
    checked = check(request, ExplainParams)
    service, params, min_confidence = checked.service, checked.params, checked.min_confidence
    name, decoder = checked.model.name, checked.service.decoder
    chosen = None if params.label is None else index_of(params.label, checked.model.card.labels)

    async with checked.deadline as deadline:
        with service.upload(name, deadline=deadline.at, small=is_small(request)):
            uploads = await read_uploads(request, max_files=1, parameters=ExplainParams.model_fields)
        with service.engine.admit(name, 1, deadline=deadline.at) as lease:
            sources = sources_of(request, service.settings, [uploads[0].data])
            (outcome,) = await classify(uploads, lease, decoder, checked.views, sources=sources, maps=True)
            record(request, service, name, [outcome], min_confidence)
            if isinstance(outcome, ImageError):
                raise outcome
            first = outcome.prediction.top_k(1)[0].index
            index = first if chosen is None else chosen
            exact = outcome.prediction.maps is not None
            if outcome.prediction.maps is not None:
                maps = outcome.prediction.maps[:, index]
            else:
                maps = await lease.grad_cam(outcome.image.pixels[: outcome.prediction.views], index)
            began = time.monotonic()
            drawn: bytes | list[ExplainedView]
            if params.format == "png":
                scale = outcome.prediction.maps[:, first] if outcome.prediction.maps is not None else None
                drawn = await decoder.draw(uploads[0].data, outcome.image, maps, scale, Flow(name))
            else:
                ranked = outcome.prediction.top_k(params.maps)
                drawn = await _views(decoder, Flow(name), outcome.image, maps, outcome.prediction.maps, ranked)

    request.state.timings["draw"] = (time.monotonic() - began) * 1000
    if isinstance(drawn, bytes):
        return Response(drawn, media_type="image/png")
    explanation = Explanation(
        model=name_of(lease.model.card),
        result=image_result(uploads[0].filename, outcome.image, outcome.prediction, checked.top_k, min_confidence),
        label=lease.model.card.labels[index],
        index=index,
        probability=round(float(outcome.prediction.probabilities[index]), 6),
        method=CLASS_ACTIVATION_MAP if exact else GRAD_CAM,
        views=drawn,
    )
    return Response(explanation.model_dump_json(), media_type="application/json")


async def _views(
    decoder: Decoder,
    flow: Flow,
    image: PreprocessedImage,
    maps: NDArray[np.float32],
    all_maps: NDArray[np.float32] | None,
    ranked: Sequence[Ranked],
) -> list[ExplainedView]:
    """Each view that was run with its map, and with those of the ranked classes."""
    pixels, boxes, weights = image.pixels[: len(maps)], image.boxes[: len(maps)], view_weights(len(maps)).tolist()

    def views() -> Iterator[ExplainedView]:
        for number, (left, top, right, bottom) in enumerate(boxes):
            yield ExplainedView(
                box=(round(left, 3), round(top, 3), round(right, 3), round(bottom, 3)),
                input="data:image/png;base64," + base64.b64encode(png(pixels[number])).decode(),
                map=_cells(maps[number]),
                weight=round(weights[number], 6),
                maps={each.label: _cells(all_maps[number, each.index]) for each in ranked}
                if ranked and all_maps is not None
                else None,
            )

    return await decoder.run(lambda: list(views()), size=pixels.nbytes, flow=flow)


def _cells(cells: NDArray[np.float32]) -> list[list[float]]:
    return [[round(value, 6) for value in row] for row in cells.tolist()]
