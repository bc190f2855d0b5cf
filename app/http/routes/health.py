"""Probes: /livez, /readyz and its common name /healthz."""

from typing import Annotated

from fastapi import APIRouter, Depends

from app.engine.errors import NotAlive, NotReady
from app.http.dependencies import service_of
from app.http.problems import documented
from app.http.schemas import Health
from app.serving.service import Service

router = APIRouter(tags=["health"])


async def livez(service: Annotated[Service, Depends(service_of)]) -> Health:
    """Whether the process and its engines work; where they do not, only a restart helps."""
    service.engine.check_alive()
    service.decoder.check_alive()
    return Health(status="alive")


async def readyz(service: Annotated[Service, Depends(service_of)]) -> Health:
    """Whether all models are loaded and self-tested and the service is not going down."""
    service.check_ready()
    service.decoder.check_alive()
    return Health(status="ready")


for _path, _probe, _failures in (
    ("/livez", livez, (NotAlive,)),
    ("/readyz", readyz, (NotReady, NotAlive)),
    ("/healthz", readyz, (NotReady, NotAlive)),
):
    router.add_api_route(_path, _probe, name=_path.strip("/"), responses=documented(*_failures))
