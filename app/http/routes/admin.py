"""POST /models/NAME: other weights without a restart. These routes exist only if the settings contain admin keys."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from app.engine.errors import (
    NotAlive,
    NotReady,
    SwapConflict,
    SwapInterrupted,
    SwapRefused,
    TooManyUploads,
    UnknownModel,
)
from app.engine.status import Comparison, ShadowPlan, Status
from app.http.auth import require_admin_key
from app.http.deadline import Deadline
from app.http.parameters import path_parameter
from app.http.problems import (
    BodyTooLarge,
    DeadlinePassed,
    InvalidParameter,
    Unauthorized,
    UploadTooSlow,
    documented,
)
from app.http.schemas import ShadowReport, SwapReport, WeightsReport
from app.http.upload import read_json
from app.serving.service import Service

router = APIRouter(tags=["admin"], dependencies=[Depends(require_admin_key)])


class SwapRequest(BaseModel):
    """The body of POST /models/{name}."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weights: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=4_096,  # PATH_MAX of Linux: all processes get the path, in a message
            description="Folder of the bundle below TENFOLD_WEIGHTS_ROOT. The default is that of the model.",
        ),
    ] = None
    shadow: Annotated[
        FiniteFloat | None,
        Field(gt=0, le=1, description="Share of the live images that are compared before the swap. Without it, none."),
    ] = None
    images: Annotated[int, Field(ge=1, description="Number of images that must be compared.")] = 200
    seconds: Annotated[
        FiniteFloat, Field(gt=0, le=86_400, description="Seconds after which fewer compared images are a refusal.")
    ] = 600.0
    agreement: Annotated[
        FiniteFloat,
        Field(ge=0, le=1, description="Smallest share of the compared images with the same most probable class."),
    ] = 0.98

    @property
    def plan(self) -> ShadowPlan | None:
        """How the weights are compared."""
        if self.shadow is None:
            return None
        return ShadowPlan(share=self.shadow, images=self.images, seconds=self.seconds, agreement=self.agreement)


_PARAMETERS = {"parameters": [path_parameter("name")]}
_ERRORS = (Unauthorized, UnknownModel, SwapRefused, SwapConflict, SwapInterrupted, NotReady, NotAlive)


@router.post(
    "/models/{name}",
    responses=documented(*_ERRORS, UploadTooSlow, BodyTooLarge, InvalidParameter, TooManyUploads, DeadlinePassed),
    openapi_extra={
        **_PARAMETERS,
        "requestBody": {"content": {"application/json": {"schema": SwapRequest.model_json_schema()}}},
    },
)
async def swap(request: Request) -> SwapReport:
    """Serve other weights under the name of a model, without a restart.

    The response comes when they are served, or when they are refused and the old ones still are. Requests in progress
    keep the weights that they began with. The old ones stay loaded until the swap is confirmed.
    """
    service, name = _of(request)
    async with Deadline(request, service):
        order = await read_json(request, SwapRequest)
    return _report(await service.engine.swap(name, order.weights, order.plan))


@router.post("/models/{name}/rollback", responses=documented(*_ERRORS), openapi_extra=_PARAMETERS)
async def roll_back(request: Request) -> SwapReport:
    """Serve the previous version of a model again, which is still loaded, and release the present one."""
    service, name = _of(request)
    return _report(await service.engine.roll_back(name))


@router.post("/models/{name}/confirm", responses=documented(*_ERRORS), openapi_extra=_PARAMETERS)
async def confirm(request: Request) -> SwapReport:
    """Release the previous version of a model. It cannot be returned to any more."""
    service, name = _of(request)
    return _report(await service.engine.confirm(name))


@router.delete(
    "/models/{name}/swap",
    responses=documented(Unauthorized, UnknownModel, SwapConflict, SwapInterrupted, NotReady, NotAlive),
    openapi_extra=_PARAMETERS,
)
async def end(request: Request) -> SwapReport:
    """End a swap that is in progress, such as a long comparison. The old weights stay, and the report says so."""
    service, name = _of(request)
    return _report(await service.engine.end_swap(name))


@router.get("/models/{name}/swap", responses=documented(Unauthorized, UnknownModel), openapi_extra=_PARAMETERS)
async def latest(request: Request) -> SwapReport:
    """The latest swap of a model, also while it is in progress."""
    service, name = _of(request)
    return _report(await service.engine.swap_status(name) or Status(action="swap", model=name, state="none"))


def _of(request: Request) -> tuple[Service, str]:
    service: Service = request.app.state.service
    request.state.model = service.engine.catalog.resolve(request.path_params["name"])
    return service, request.state.model


def _report(status: Status) -> SwapReport:
    return SwapReport(
        model=status.model,
        action=status.action,
        state=status.state,
        version=status.version,
        previous=status.previous,
        reason=status.reason,
        shadow=_shadow(status.comparison) if status.comparison else None,
    )


def _shadow(found: Comparison) -> ShadowReport:
    compared = max(1, found.images - found.failed)
    serving, candidate = (
        WeightsReport(
            mean_confidence=round(found.confidence[side] / compared, 6),
            accepted=round(found.accepted[side] / compared, 6),
        )
        for side in (0, 1)
    )
    return ShadowReport(
        images=found.images,
        agreement=round(found.agreement, 6),
        serving=serving,
        candidate=candidate,
        failed=found.failed,
        dropped=found.dropped,
    )
