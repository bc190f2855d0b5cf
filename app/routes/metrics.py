"""What Prometheus is told."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from app.problems import Unauthorized, documented
from app.service import Service, service_of
from app.telemetry import MEDIA_TYPE

router = APIRouter(tags=["metrics"])


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **documented(Unauthorized)},
)
def metrics(service: Annotated[Service, Depends(service_of)]) -> Response:
    """Counters, gauges and histograms in Prometheus's text format, over all processes."""
    return Response(service.telemetry.exposition(), media_type=MEDIA_TYPE)
