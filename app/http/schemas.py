"""The JSON of requests and responses."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, WithJsonSchema, computed_field

from app.engine.api import ModelState
from app.engine.drift import DriftState
from app.engine.status import Action, State
from model import ModelCard, Prediction, PreprocessedImage, Verdict


class Problem(BaseModel):
    """An error, after RFC 9457, as application/problem+json."""

    type: Annotated[str, Field(description="The type of problem, for programs.", examples=["urn:tenfold:queue-full"])]
    title: Annotated[str, Field(description="The type of problem, for people.")]
    status: Annotated[int, Field(description="The HTTP status.")]
    detail: Annotated[str, Field(description="What happened this time, and what to do.")]
    instance: Annotated[str, Field(description="The request ID, as in X-Request-ID.")]


class Ranked(BaseModel):
    """One class of a ranking."""

    label: str
    index: Annotated[int, Field(ge=0, description="Number of the class.")]
    probability: Annotated[float, Field(ge=0, le=1)]


class ImageResult(BaseModel):
    """The result for an image that was classified."""

    filename: Annotated[str | None, Field(description="As uploaded; null for a raw body.")]
    width: Annotated[int, Field(description="Pixels, after EXIF orientation.")]
    height: Annotated[int, Field(description="Pixels, after EXIF orientation.")]
    top_k: Annotated[list[Ranked], Field(description="The most likely classes, most likely first.")]
    in_distribution: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Fraction of held-out images of the classes with a lower score (an empirical p-value).",
        ),
    ]
    verdict: Annotated[
        Verdict,
        Field(
            description="accepted: the image looks like one of the classes, with enough confidence. uncertain: it may "
            "be one of them. other: it is probably none of them."
        ),
    ]
    accepted: Annotated[bool, Field(description="Whether the verdict is accepted.")]
    views: Annotated[int, Field(ge=1, description="Number of views of the image that were combined.")]
    warnings: Annotated[list[str], Field(examples=[["upscaled from 8x8"]])]


def image_result(
    filename: str | None, image: PreprocessedImage, prediction: Prediction, top_k: int, min_confidence: float
) -> ImageResult:
    """The result for an image. Probabilities are rounded to six decimal places."""
    ranking = [
        Ranked(label=ranked.label, index=ranked.index, probability=round(ranked.probability, 6))
        for ranked in prediction.top_k(top_k)
    ]
    verdict = prediction.verdict(min_confidence)
    return ImageResult(
        filename=filename,
        width=image.width,
        height=image.height,
        top_k=ranking,
        in_distribution=round(prediction.in_distribution, 6),
        verdict=verdict,
        accepted=verdict == "accepted",
        views=prediction.views,
        warnings=list(image.warnings),
    )


class ImageProblem(BaseModel):
    """The result for an image, one of several in its request, that could not be classified."""

    filename: Annotated[str | None, Field(description="As uploaded.")]
    problem: Problem


class ModelName(BaseModel):
    """The model that gave the results."""

    name: str
    version: Annotated[
        str, Field(description="12 hexadecimal digits. They change whenever the results of the model can change.")
    ]


class Predictions(BaseModel):
    """The response to an upload: one result for each image, in order."""

    model: ModelName
    results: list[ImageResult | ImageProblem]


class ExplainedView(BaseModel):
    """What the network saw of an image, and how much each part of it added to the logit of the class."""

    box: Annotated[
        tuple[float, float, float, float],
        WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}),
        Field(description="Left, top, right and bottom of the view, in pixels of the image after EXIF orientation."),
    ]
    input: Annotated[str, Field(description="The pixels that the network saw, as a PNG in a data: URL.")]
    map: Annotated[
        list[list[float]],
        Field(description="What each cell of a grid over the view adds to the logit of the class, row by row; signed."),
    ]
    weight: Annotated[
        float, Field(ge=0, le=1, description="How much the view counts in the prediction. The sum over the views is 1.")
    ]
    maps: Annotated[
        dict[str, list[list[float]]] | None,
        Field(description="The maps of the most probable classes by their labels, as many as `maps` requests."),
    ]


class Explanation(BaseModel):
    """Which parts of an image speak for a class."""

    model: ModelName
    result: ImageResult
    label: Annotated[str, Field(description="The class that is explained.")]
    index: Annotated[int, Field(ge=0, description="Number of that class.")]
    probability: Annotated[float, Field(ge=0, le=1, description="Probability of that class.")]
    method: Annotated[str, Field(description="How the maps are computed.")]
    views: Annotated[list[ExplainedView], Field(description="One for each view of the result.")]


class ModelStatus(BaseModel):
    """One model of the service."""

    name: Annotated[str, Field(description="Value of the parameter `model`.")]
    version: Annotated[str | None, Field(description="As in `ModelName`; null while the model is not loaded.")]
    state: Annotated[ModelState, Field(description="Whether the model may be used.")]


class Models(BaseModel):
    """The models of the service."""

    default: Annotated[str, Field(description="Name of the model for requests that name none.")]
    models: list[ModelStatus]
    feedback: Annotated[bool, Field(description="Whether predictions are stored for POST /feedback.")]
    stores_images: Annotated[bool, Field(description="Whether uploaded images are stored for feedback.")]


class ServedCard(ModelCard):
    """A model card with the version of the model."""

    @computed_field(description="12 hexadecimal digits, as in `ModelName`.")  # type: ignore[prop-decorator]
    @property
    def version(self) -> str:
        return super().version


class SelectedFields(RootModel[dict[str, Any]]):
    """The fields of a card that a request has named, with those fields of fields."""


def served_card(card: ModelCard) -> ServedCard:
    """The card as it is served."""
    return ServedCard.model_validate({name: getattr(card, name) for name in ModelCard.model_fields})


class WeightsReport(BaseModel):
    """What weights gave for the images of a comparison."""

    mean_confidence: Annotated[float, Field(description="Mean probability of the most probable class.")]
    accepted: Annotated[float, Field(description="Share of the images with the verdict accepted.")]


class ShadowReport(BaseModel):
    """The comparison of new weights with those that are served, on live images."""

    images: Annotated[int, Field(description="Number of images that were compared.")]
    agreement: Annotated[float, Field(description="Share of them with the same most probable class.")]
    serving: Annotated[WeightsReport, Field(description="Of the weights that were served.")]
    candidate: Annotated[WeightsReport, Field(description="Of the new weights.")]
    failed: Annotated[int, Field(description="Number of images on which the new weights raised an error.")]
    dropped: Annotated[int, Field(description="Number of copies that were not compared, because others waited.")]


class SwapReport(BaseModel):
    """The latest change of the weights of a model."""

    model: str
    action: Action
    state: Annotated[
        State,
        Field(
            description="none: there was none. loading, comparing: in progress. done: the new weights are "
            "served. refused, interrupted: the old ones are."
        ),
    ]
    version: Annotated[str | None, Field(description="Of the new weights; null until they are loaded.")]
    previous: Annotated[str | None, Field(description="Version that a rollback returns to; null if none is kept.")]
    reason: Annotated[str, Field(description="Why the new weights are not served.")]
    shadow: Annotated[ShadowReport | None, Field(description="The comparison; null if there was none.")]


class Feedback(BaseModel):
    """The right class of an image that was classified."""

    model_config = ConfigDict(extra="forbid")

    request_id: Annotated[str, Field(max_length=64, description="X-Request-ID of the response with the prediction.")]
    label: Annotated[
        str | None,
        Field(
            max_length=1_000,
            description='The right class: one of the model\'s, or "none of these". null removes the label.',
        ),
    ]
    index: Annotated[int, Field(ge=0, lt=2**31, description="Index of the image in its request, from 0.")] = 0
    model: Annotated[
        str | None, Field(description="Name of the model. If given, it must be that of the prediction.")
    ] = None


class StoredFeedback(BaseModel):
    """The prediction, and the label that is stored now."""

    request_id: str
    index: int
    model: ModelName
    predicted: Annotated[str, Field(description="The most probable class.")]
    confidence: Annotated[float, Field(ge=0, le=1, description="Its probability.")]
    label: Annotated[str | None, Field(description="The right class; null if the label was removed.")]
    right: Annotated[bool, Field(description="Whether the two are the same.")]


class Shift(BaseModel):
    """How much one distribution of live images differs from that of held-out images."""

    psi: Annotated[float, Field(description="Population stability index.")]
    limit: Annotated[float, Field(description="The distribution has drifted if the index is above it.")]
    drifted: Annotated[bool, Field(description="Whether it has.")]


class ModelDrift(BaseModel):
    """Whether the images of a model still resemble the held-out images of its training."""

    name: Annotated[str, Field(description="Name of the model.")]
    version: Annotated[str, Field(description="As in `ModelName`.")]
    state: Annotated[
        DriftState | Literal["off"],
        Field(description="off: nothing is compared. collecting: there are too few images. stable or drifted."),
    ]
    images: Annotated[int, Field(description="Number of images that are compared: the last ones.")]
    distributions: Annotated[
        dict[str, Shift],
        Field(description="By name: classes, confidence, in_distribution. Empty if nothing is compared."),
    ]
    summary: Annotated[str, Field(description="The same in a sentence.")]


class DriftReport(BaseModel):
    """Drift of all loaded models."""

    workers: Annotated[int, Field(description="Number of front processes. Their images are counted together.")]
    window: Annotated[int, Field(description="Number of images that are kept for a model.")]
    models: list[ModelDrift]


class Health(BaseModel):
    """The response to a probe when the service is well."""

    status: Literal["alive", "ready"]
