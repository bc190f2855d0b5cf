"""GET /drift: whether the images of each model still resemble those of its training."""

from typing import Annotated

from fastapi import APIRouter, Depends

from app.engine.api import ModelInfo
from app.engine.drift import Drift
from app.http.dependencies import service_of
from app.http.problems import Unauthorized, documented
from app.http.schemas import DriftReport, ModelDrift, Shift
from app.serving.service import Service
from app.settings import Settings

router = APIRouter(tags=["metrics"])


@router.get("/drift", responses=documented(Unauthorized))
async def drift(service: Annotated[Service, Depends(service_of)]) -> DriftReport:
    """The last images of each model, compared with the held-out images of each model."""
    found = await service.engine.drift()
    settings = service.settings
    return DriftReport(
        workers=settings.workers,
        window=settings.drift_window,
        models=[_entry(model, found.get(model.name), settings) for model in service.engine.catalog],
    )


def _entry(model: ModelInfo, drift: Drift | None, settings: Settings) -> ModelDrift:
    comparisons = drift.comparisons if drift else {}
    return ModelDrift(
        name=model.name,
        version=model.card.version,
        state=drift.state if drift else "off",
        images=drift.images if drift else 0,
        distributions={
            name: Shift(psi=round(found.psi, 4), limit=round(found.limit, 4), drifted=found.drifted)
            for name, found in comparisons.items()
        },
        summary=_sentence(drift, settings) if drift else _reason(model.name, settings),
    )


def _reason(name: str, settings: Settings) -> str:
    """Why nothing is compared."""
    if not settings.drift_window:
        return "Nothing is compared, because TENFOLD_DRIFT_WINDOW is 0."
    return (
        f"Nothing is compared, because the card of {name} has no reference distributions: "
        "add them with tenfold calibrate --reference-only."
    )


def _sentence(drift: Drift, settings: Settings) -> str:
    if drift.state == "collecting":
        return f"{drift.images:,} of the {settings.drift_min_images:,} images that are needed have been classified."
    if drift.state == "stable":
        return f"The last {drift.images:,} images resemble the held-out images."
    changes = [found.change for found in drift.comparisons.values() if found.drifted]
    return f"The last {drift.images:,} images differ from the held-out images: {', '.join(changes)}."
