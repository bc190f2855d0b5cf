"""GET /models, GET /models/NAME and GET /model: what is being served."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from app.http.dependencies import service_of
from app.http.problems import Unauthorized, documented
from app.http.schemas import Models, ModelStatus, ServedCard, served_card
from app.serving.errors import NotAlive, NotReady, UnknownModel
from app.serving.service import Service

router = APIRouter(tags=["models"])


@router.get("/models", responses=documented(Unauthorized))
async def models(service: Annotated[Service, Depends(service_of)]) -> Models:
    """All models, in the order of the settings."""
    registry = service.models
    loaded = {model.name: model.card.version for model in registry}
    entries = [ModelStatus(name=name, version=loaded.get(name), state=registry.state(name)) for name in registry.names]
    return Models(default=registry.names[0], models=entries)


@router.get(
    "/models/{name}",
    responses=documented(Unauthorized, UnknownModel, NotReady, NotAlive),
    # Declared here: FastAPI would document a status 422, but any name is valid.
    openapi_extra={"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]},
)
async def card(request: Request, service: Annotated[Service, Depends(service_of)]) -> ServedCard:
    """The card of a model: architecture, labels, test transform, training, test accuracy."""
    return served_card(service.models.get(request.path_params["name"]).card)


@router.get("/model", responses=documented(Unauthorized, NotReady, NotAlive))
async def default_card(service: Annotated[Service, Depends(service_of)]) -> ServedCard:
    """The card of the default model."""
    return served_card(service.models.get().card)
