"""The wire shapes."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from model import Prediction, PreprocessedImage


class Problem(BaseModel):
    """An error, after RFC 9457, as application/problem+json."""

    type: Annotated[str, Field(description="What kind of problem, for programs.", examples=["urn:tenfold:queue-full"])]
    title: Annotated[str, Field(description="The same for people.")]
    status: Annotated[int, Field(description="The HTTP status.")]
    detail: Annotated[str, Field(description="What happened this time, and what to do.")]
    instance: Annotated[str, Field(description="The request id, as in X-Request-ID.")]


class Ranked(BaseModel):
    """One class of a ranking."""

    label: str
    index: Annotated[int, Field(ge=0, description="The class's number.")]
    probability: Annotated[float, Field(ge=0, le=1)]


class ImageResult(BaseModel):
    """A picture that was classified."""

    filename: Annotated[str | None, Field(description="As uploaded; null for a raw body.")]
    width: Annotated[int, Field(description="Pixels, as seen (after EXIF orientation).")]
    height: Annotated[int, Field(description="Pixels, as seen.")]
    top_k: Annotated[list[Ranked], Field(description="The likeliest classes, likeliest first.")]
    in_distribution: Annotated[
        float,
        Field(ge=0, le=1, description="Share of known pictures of the classes that look no more like them than this."),
    ]
    accepted: Annotated[bool, Field(description="Whether it looks like one of the classes, and surely enough.")]
    views: Annotated[int, Field(ge=1, description="How many views of the picture were averaged.")]
    warnings: Annotated[list[str], Field(examples=[["upscaled from 8x8"]])]


def image_result(
    filename: str | None, picture: PreprocessedImage, prediction: Prediction, top_k: int, min_confidence: float
) -> ImageResult:
    """What is told of a picture, its probabilities to six places."""
    ranking = [
        Ranked(label=ranked.label, index=ranked.index, probability=round(ranked.probability, 6))
        for ranked in prediction.top_k(top_k)
    ]
    return ImageResult(
        filename=filename,
        width=picture.width,
        height=picture.height,
        top_k=ranking,
        in_distribution=round(prediction.in_distribution, 6),
        accepted=prediction.accepted(min_confidence),
        views=len(picture.pixels),
        warnings=list(picture.warnings),
    )


class ImageProblem(BaseModel):
    """A picture, one of several in its request, that could not be classified."""

    filename: Annotated[str | None, Field(description="As uploaded.")]
    problem: Problem


class ModelName(BaseModel):
    """Which weights gave the answer."""

    name: str
    version: Annotated[str, Field(description="12 hex digits of the weights' SHA-256.")]


class Predictions(BaseModel):
    """The answer to an upload: one result a picture, in order."""

    model: ModelName
    results: list[ImageResult | ImageProblem]


class ExplainedView(BaseModel):
    """What the network saw of a picture, and what it made of it."""

    box: Annotated[
        tuple[float, float, float, float],
        Field(description="Left, top, right and bottom of what it shows, pixels of the picture as seen."),
    ]
    input: Annotated[str, Field(description="The pixels that the network saw, as a PNG in a data: URL.")]
    map: Annotated[
        list[list[float]],
        Field(description="What each cell of a grid over it adds to the class's logit, row by row; signed."),
    ]


class Explanation(BaseModel):
    """Why a picture has the probability that it has for one class."""

    model: ModelName
    result: ImageResult
    label: Annotated[str, Field(description="The class that is explained.")]
    index: Annotated[int, Field(ge=0, description="The class's number.")]
    probability: Annotated[float, Field(ge=0, le=1, description="Of that class.")]
    method: Annotated[str, Field(description="How the maps came about.")]
    views: Annotated[list[ExplainedView], Field(description="As many as the result says.")]


class Health(BaseModel):
    """The answer to a probe that finds all well."""

    status: Literal["alive", "ready"]
