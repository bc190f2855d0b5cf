"""GET /models, GET /models/NAME and GET /model: what is being served."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from app.engine.errors import NotAlive, NotReady, UnknownModel
from app.http.dependencies import service_of
from app.http.parameters import path_parameter
from app.http.problems import InvalidParameter, Unauthorized, documented
from app.http.schemas import Models, ModelStatus, SelectedFields, ServedCard, served_card
from app.serving.service import Service

router = APIRouter(tags=["models"])

Fields = Annotated[
    str | None,
    Query(
        description="Names of the fields to return, separated by commas. All of them by default. A dot is before a "
        "field of a field.",
        examples=["name,labels,metrics.top1"],
    ),
]


@router.get("/models", responses=documented(Unauthorized))
async def models(service: Annotated[Service, Depends(service_of)]) -> Models:
    """All models, in the order of the settings."""
    catalog = service.engine.catalog
    loaded = {model.name: model.card.version for model in catalog}
    entries = [ModelStatus(name=name, version=loaded.get(name), state=catalog.state(name)) for name in catalog.names]
    settings = service.settings
    feedback = settings.feedback is not None
    return Models(
        default=catalog.names[0],
        models=entries,
        feedback=feedback,
        stores_images=feedback and settings.feedback_images,
    )


@router.get(
    "/models/{name}",
    responses=documented(Unauthorized, InvalidParameter, UnknownModel, NotReady, NotAlive),
    openapi_extra={"parameters": [path_parameter("name")]},
)
async def card(
    request: Request, service: Annotated[Service, Depends(service_of)], fields: Fields = None
) -> ServedCard | SelectedFields:
    """The card of a model: architecture, labels, test transform, training, test accuracy."""
    return _response(served_card(service.engine.catalog.get(request.path_params["name"]).card), fields)


@router.get("/model", responses=documented(Unauthorized, InvalidParameter, NotReady, NotAlive))
async def default_card(
    service: Annotated[Service, Depends(service_of)], fields: Fields = None
) -> ServedCard | SelectedFields:
    """The card of the default model."""
    return _response(served_card(service.engine.catalog.get().card), fields)


def _response(card: ServedCard, fields: str | None) -> ServedCard | SelectedFields:
    return card if fields is None else SelectedFields(_select(card.model_dump(mode="json"), fields))


def _select(card: dict[str, Any], fields: str) -> dict[str, Any]:
    """The part of a card with these fields.

    Raises:
        InvalidParameter: the card has no such field.
    """
    selected: dict[str, Any] = {}
    for field in fields.split(","):
        source: Any = card
        target = selected
        *parents, name = field.split(".")
        try:
            for parent in parents:
                source = source[parent]
                if source is None:
                    target[parent] = None
                    break
                target = target.setdefault(parent, {})
            else:
                target[name] = source[name]
        except (KeyError, TypeError) as error:
            raise InvalidParameter(f"query.fields: a card has no field {field[:50]!r}: GET /model lists all") from error
    return selected
