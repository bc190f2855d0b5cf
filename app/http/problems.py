"""Exception -> RFC 9457 problem+json, by one table."""

import http
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from app.engine.errors import (
    NotAlive,
    NotReady,
    QueueFull,
    ServingError,
    SwapConflict,
    SwapInterrupted,
    SwapRefused,
    TooManyUploads,
    UnknownModel,
)
from app.http.schemas import Problem
from model import ImageError, ImageTooLarge, NotExplainable, UnreadableImage, UnsupportedImage


class RequestError(Exception):
    """Base class of what the HTTP layer refuses. The message says what the client should do."""

    headers: ClassVar[Mapping[str, str]] = {}
    """Headers of the response."""


class BadUpload(RequestError):
    """The body is malformed, or there is no image in it."""


class BadFile(BadUpload, ImageError):
    """One of the images is empty or cannot be decoded from text. It does not affect the others."""


class Unauthorized(RequestError):
    """The API key is missing or wrong."""

    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class UploadTooSlow(RequestError):
    """The body did not arrive before the deadline."""

    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class UnsupportedBody(RequestError):
    """The content type is neither multipart/form-data nor that of an image."""


class BodyTooLarge(RequestError):
    """The body has more bytes than the limit."""


class TooManyFiles(RequestError):
    """The request has more images than the limit."""


class InvalidParameter(RequestError):
    """A parameter is malformed or out of range."""


class InvalidTopK(RequestError):
    """top_k is not between 1 and the number of classes."""


class InvalidInference(RequestError):
    """The body of an inference request is malformed, or its tensors are not those of the model."""


class UnknownLabel(RequestError):
    """The label is not one of the model's."""


class UnknownPrediction(RequestError):
    """No prediction of this request and index is stored."""


class RequestIDReused(RequestError):
    """Several requests with different predictions had the same request ID."""


class NotStored(RequestError):
    """The file for feedback cannot be used."""


class DeadlinePassed(RequestError):
    """There was no response before the deadline."""


class ClientDisconnected(Exception):
    """The client closed the connection before its response. There is nobody to send a problem to."""


class ProblemType(NamedTuple):
    """How an exception is reported: HTTP status, the slug of its type URN, a title."""

    status: int
    slug: str
    title: str


TABLE: Mapping[type[Exception], ProblemType] = {
    BadUpload: ProblemType(400, "bad-upload", "The upload holds no image"),
    InvalidInference: ProblemType(400, "invalid-inference", "The inference request is malformed"),
    Unauthorized: ProblemType(401, "unauthorized", "An API key is needed"),
    UnknownModel: ProblemType(404, "unknown-model", "There is no such model"),
    UnknownPrediction: ProblemType(404, "unknown-prediction", "There is no such prediction"),
    UploadTooSlow: ProblemType(408, "upload-too-slow", "The upload took too long"),
    SwapConflict: ProblemType(409, "swap-conflict", "The weights cannot be changed now"),
    RequestIDReused: ProblemType(409, "request-id-reused", "The request ID is not unique"),
    BodyTooLarge: ProblemType(413, "body-too-large", "The request is too large"),
    ImageTooLarge: ProblemType(413, "picture-too-large", "The image is too large"),
    TooManyFiles: ProblemType(413, "too-many-files", "Too many images in one request"),
    UnsupportedBody: ProblemType(415, "unsupported-body", "The content type is not accepted"),
    UnsupportedImage: ProblemType(415, "unsupported-picture", "The image format is not accepted"),
    UnreadableImage: ProblemType(422, "unreadable-picture", "The image is damaged"),
    InvalidTopK: ProblemType(422, "invalid-top-k", "top_k is out of range"),
    UnknownLabel: ProblemType(422, "unknown-label", "There is no such class"),
    InvalidParameter: ProblemType(422, "invalid-parameter", "A parameter is malformed"),
    SwapRefused: ProblemType(422, "swap-refused", "The new weights are not served"),
    Exception: ProblemType(500, "internal-error", "The service failed"),
    NotExplainable: ProblemType(501, "not-explainable", "The model cannot be explained"),
    QueueFull: ProblemType(503, "queue-full", "The service is at capacity"),
    TooManyUploads: ProblemType(503, "too-many-uploads", "Too many uploads are in progress"),
    NotReady: ProblemType(503, "not-ready", "The service is not ready"),
    NotAlive: ProblemType(503, "not-alive", "The engine does not respond"),
    SwapInterrupted: ProblemType(503, "swap-interrupted", "The swap was interrupted"),
    DeadlinePassed: ProblemType(504, "deadline-passed", "No response in time"),
    NotStored: ProblemType(507, "not-stored", "The feedback cannot be stored"),
}

MEDIA_TYPE = "application/problem+json"

Renderer = Callable[[Exception, str], Response]
"""An error and the request ID to a response."""


def slug_of(error: Exception) -> str:
    """The slug of the problem type, such as "queue-full". For an error of the framework, its status: "http-404"."""
    return f"http-{error.status_code}" if isinstance(error, HTTPException) else _type_of(error).slug


def _type_of(error: Exception) -> ProblemType:
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def problem_of(error: Exception, request_id: str) -> Problem:
    """The problem that reports `error`. An exception that is not in the table is reported without its message."""
    problem = _type_of(error)
    if problem.status == 500:
        detail = f"the service failed on this request: report it with the request ID {request_id}"
    else:
        detail = str(error)
    return Problem(
        type=f"urn:tenfold:{problem.slug}",
        title=problem.title,
        status=problem.status,
        detail=detail,
        instance=request_id,
    )


def report(error: Exception, request_id: str) -> tuple[Problem, dict[str, str]]:
    """The problem that reports `error`, and headers of the response, with Retry-After where a retry makes sense."""
    if isinstance(error, HTTPException):
        problem = Problem(
            type="about:blank",
            title=http.HTTPStatus(error.status_code).phrase,
            status=error.status_code,
            detail=_http_detail(error),
            instance=request_id,
        )
    else:
        problem = problem_of(error, request_id)
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, ServingError) and error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return problem, headers


def problem_response(error: Exception, request_id: str) -> Response:
    """The response that reports `error` as problem+json."""
    problem, headers = report(error, request_id)
    return Response(problem.model_dump_json(), problem.status, headers, MEDIA_TYPE)


def _http_detail(error: HTTPException) -> str:
    allowed = (error.headers or {}).get("Allow")
    if error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED and allowed:
        return f"this path takes {allowed}: send the request with one of these methods"
    return f"{error.detail}: see /docs for the paths and methods of this service"


def _allowed(request: Request) -> list[str]:
    """The methods of a path. The router reports only those of its first route for the path."""

    def takes(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    methods = {method for method in ("DELETE", "GET", "POST") if takes(method)}
    return sorted({*methods, "OPTIONS", *(["HEAD"] if "GET" in methods else [])})


def documented(*errors: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that can fail with these errors."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in (TABLE[cls] for cls in errors):
        entry = responses.setdefault(
            problem.status,
            {"description": "", "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}},
        )
        entry["description"] = "; ".join(filter(None, (entry["description"], problem.title)))
    return responses


class Errors:
    """Turns exceptions into responses: by the renderer of the longest path prefix, else by `problem_response`.

    Args:
        renderers: path prefix, such as "/v2", -> renderer, for routes with an error format of their own.
    """

    def __init__(self, renderers: Mapping[str, Renderer] | None = None) -> None:
        self.known: tuple[type[Exception], ...] = tuple(cls for cls in (*TABLE, HTTPException) if cls is not Exception)
        """The exceptions that `response` is for. The middleware logs the others."""
        self._renderers = sorted((renderers or {}).items(), key=lambda item: len(item[0]), reverse=True)

    def response(self, scope: Scope, error: Exception) -> Response:
        """The response that reports `error` to the request of this scope."""
        state = scope["state"]
        state["rejected"] = slug_of(error)
        path = f"{scope['path']}/"
        render = next((render for prefix, render in self._renderers if path.startswith(f"{prefix}/")), problem_response)
        return render(error, state["request_id"])

    def install(self, app: FastAPI) -> None:
        """Answer every exception of the table, and HTTP errors of the framework, with `response`."""

        async def handle(request: Request, error: Exception) -> Response:
            if isinstance(error, HTTPException) and error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
                headers = {"Allow": ", ".join(_allowed(request))}
                if request.method == "OPTIONS":
                    return Response(status_code=http.HTTPStatus.NO_CONTENT, headers=headers)
                error = HTTPException(error.status_code, headers=headers)
            if isinstance(error, RequestValidationError):
                first = error.errors()[0]
                error = InvalidParameter(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
            return self.response(request.scope, error)

        for cls in (*self.known, RequestValidationError):
            app.add_exception_handler(cls, handle)
