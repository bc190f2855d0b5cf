"""Parameters of the routes that take images: parsed here and documented in OpenAPI by the same models.

FastAPI's own handling of parameters takes longer than the decoding of a small image.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import parse_qsl

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from app.http.problems import InvalidParameter, InvalidTopK
from model import MAX_VIEWS

TIMEOUT_HEADER = "X-Request-Timeout"

# Characters of the name of a model or class. The response repeats a name that does not exist.
_MAX_NAME = 256
# Classes of an explanation whose maps are returned.
_MAX_MAPS = 20
_DEFAULT_TOP_K = 5
# Bytes of a query whose result is kept, so that the cache takes little memory.
_MAX_CACHED = 256


class PredictParams(BaseModel):
    """Query parameters of POST /predict."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[
        str | None,
        Field(max_length=_MAX_NAME, description="Name of the model. The default is the first one of the service."),
    ] = None
    top_k: Annotated[
        int | None,
        Field(
            description="Number of classes to return, most likely first. The default is 5, or all classes of a model "
            "with fewer."
        ),
    ] = None
    views: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_VIEWS,
            description="Largest number of views of an image. 1 is the test transform alone. "
            "The default is a setting of the service.",
        ),
    ] = None
    min_confidence: Annotated[
        FiniteFloat | None,
        Field(
            ge=0,
            le=1,
            description="Lowest probability of an accepted result. The default is a setting of the service.",
        ),
    ] = None

    def top_k_of(self, classes: int) -> int:
        """The value or default of `top_k` for a model with so many classes.

        Raises:
            InvalidTopK: `top_k` is not between 1 and the number of classes.
        """
        if self.top_k is None:
            return min(_DEFAULT_TOP_K, classes)
        if 1 <= self.top_k <= classes:
            return self.top_k
        raise InvalidTopK(f"top_k is {self.top_k}: choose 1 to {classes}")


class ExplainParams(PredictParams):
    """Query parameters of POST /explain."""

    label: Annotated[
        str | None,
        Field(max_length=_MAX_NAME, description="Class to explain. The default is the most likely one."),
    ] = None
    format: Annotated[
        Literal["json", "png"], Field(description="Numbers, or the image with the heat map drawn over it.")
    ] = "json"
    maps: Annotated[
        int,
        Field(
            ge=0,
            le=_MAX_MAPS,
            description="Number of the most probable classes whose maps are returned too, if the model has "
            "class-activation maps.",
        ),
    ] = 0


RequestTimeout = Annotated[
    FiniteFloat,
    Field(gt=0, description="Seconds until the response, if fewer than the setting of the service."),
]

P = TypeVar("P", bound=PredictParams)

_timeout = TypeAdapter[float](RequestTimeout)
_parse_timeout = _timeout.validate_python
_TIMEOUT_SCHEMA = _timeout.json_schema()


def query_of(request: Request, model: type[P]) -> P:
    """The query parameters of a request.

    Raises:
        InvalidParameter: one of them is malformed or out of range.
    """
    query = request.scope["query_string"]
    parse = _parse_and_keep if len(query) <= _MAX_CACHED else _parse
    return parse(query, model)  # type: ignore[return-value]


def timeout_of(request: Request) -> float | None:
    """The seconds in X-Request-Timeout, or None without this header.

    Raises:
        InvalidParameter: it is not a positive number.
    """
    value = request.headers.get(TIMEOUT_HEADER)
    if value is None:
        return None
    try:
        return _parse_timeout(value)
    except ValidationError as error:
        raise InvalidParameter(f"{TIMEOUT_HEADER} is {_quoted(value)}: send {_accepted(_TIMEOUT_SCHEMA)}") from error


def path_parameter(name: str) -> dict[str, Any]:
    """The OpenAPI parameter of a name in the path of a route. FastAPI would document a status 422 for it."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def documentation(model: type[PredictParams]) -> list[dict[str, Any]]:
    """The OpenAPI `parameters` of a route with these query parameters and the timeout header."""
    schema = model.model_json_schema()["properties"]
    query = [
        {"name": name, "in": "query", "required": False, "schema": field, "description": field.pop("description", "")}
        for name, field in schema.items()
    ]
    timeout = dict(_TIMEOUT_SCHEMA)
    header = {"name": TIMEOUT_HEADER.lower(), "in": "header", "required": False, "schema": timeout}
    return [*query, {**header, "description": timeout.pop("description", "")}]


def _parse(query: bytes, model: type[PredictParams]) -> PredictParams:
    try:
        return model.model_validate(dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)))
    except ValidationError as error:
        raise invalid(error, model, "parameter") from error


_parse_and_keep = lru_cache(1024)(_parse)


def invalid(error: ValidationError, model: type[BaseModel], what: str) -> InvalidParameter:
    """What to raise for values that are not valid.

    Args:
        error: its first problem is described.
        model: that refused the values.
        what: the values are: "parameter" or "field".
    """
    first = error.errors(include_url=False)[0]
    if not first["loc"]:
        reason = first.get("ctx", {}).get("error", "it is something else")
        return InvalidParameter(f"the body is not a JSON object ({reason}): send one with the fields in /docs")
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        names = list(model.model_fields)
        near = get_close_matches(name.lower(), names, 1)
        use = f"use {near[0]}" if near else f"choose from {', '.join(names)}"
        return InvalidParameter(f"there is no {what} {_quoted(name)}: {use}")
    accepted = _accepted(model.model_json_schema()["properties"][name])
    if first["type"] == "missing":
        return InvalidParameter(f"the {what} {name} is missing: send {accepted}")
    return InvalidParameter(f"{name} is {_quoted(first['input'])}: send {accepted}")


def _quoted(value: Any) -> str:
    """A value of a client as in an error, shortened."""
    text = value if isinstance(value, str) else json.dumps(value)
    start = repr(text[:50]) if isinstance(value, str) else text[:50]
    return start if len(text) <= 50 else f"{start}... ({len(text):,} characters)"


def _accepted(schema: Mapping[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    schema = next((choice for choice in schema.get("anyOf", ()) if choice.get("type") != "null"), schema)
    if "enum" in schema:
        return " or ".join(schema["enum"])
    if schema["type"] == "string":
        least, most = schema.get("minLength", 0), schema.get("maxLength")
        return "text" if most is None else f"text of {least:,} to {most:,} characters"
    kind = {"integer": "an integer", "number": "a number"}[schema["type"]]
    if "minimum" in schema and "maximum" in schema:
        return f"{kind} from {schema['minimum']:,} to {schema['maximum']:,}"
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "of at most",
        "exclusiveMaximum": "below",
    }
    found = [f"{words} {schema[name]:,}" for name, words in limits.items() if name in schema]
    return f"{kind} {' and '.join(found)}".rstrip()
