"""What is being served."""

from typing import Annotated

from fastapi import APIRouter, Depends

from app.http.dependencies import service_of
from app.http.problems import Unauthorized, documented
from app.serving.errors import NotReady
from app.serving.service import Service
from model import ModelCard

router = APIRouter(tags=["model"])


@router.get("/model", responses=documented(NotReady, Unauthorized))
async def card(service: Annotated[Service, Depends(service_of)]) -> ModelCard:
    """The card of the weights: architecture, labels, test transform, training, test accuracy."""
    return service.model.card
