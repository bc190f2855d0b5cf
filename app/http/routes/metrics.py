"""GET /metrics, for Prometheus."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from app.http.dependencies import service_of
from app.http.problems import Unauthorized, documented
from app.serving.service import Service
from app.telemetry.metrics import MEDIA_TYPE

router = APIRouter(tags=["metrics"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(Unauthorized)},
)
async def metrics(service: Annotated[Service, Depends(service_of)]) -> Response:
    """Counters, gauges and histograms in Prometheus's text format, over all processes."""
    return Response(await service.exposition(), media_type=MEDIA_TYPE)
