"""Exception -> RFC 9457 problem+json: one table."""

import http
import logging
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.http.schemas import Problem
from app.serving.errors import NotAlive, NotReady, QueueFull, ServingError, TooManyUploads
from model import ImageTooLarge, UnreadableImage, UnsupportedImage

logger = logging.getLogger("tenfold")


class ServiceError(Exception):
    """Base of what the service itself refuses; the message says what to do."""

    headers: ClassVar[Mapping[str, str]] = {}
    """Of the answer."""


class BadUpload(ServiceError):
    """Malformed multipart, no file, or an empty one."""


class Unauthorized(ServiceError):
    """No API key, or a wrong one."""

    headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class UploadTooSlow(ServiceError):
    """The body did not come in within the time allowed."""

    headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class UnsupportedBody(ServiceError):
    """The body's content type is neither multipart/form-data nor a picture's."""


class BodyTooLarge(ServiceError):
    """More bytes than the limit."""


class TooManyFiles(ServiceError):
    """More pictures in one request than the limit."""


class InvalidTopK(ServiceError):
    """top_k is not between 1 and the number of classes."""


class UnknownLabel(ServiceError):
    """label is none of the card's."""


class DeadlinePassed(ServiceError):
    """No answer within the time allowed."""


class ProblemType(NamedTuple):
    """How an exception is told: HTTP status, the slug of its type URN, a title."""

    status: int
    slug: str
    title: str


TABLE: Mapping[type[Exception], ProblemType] = {
    BadUpload: ProblemType(400, "bad-upload", "The upload holds no picture"),
    Unauthorized: ProblemType(401, "unauthorized", "An API key is needed"),
    UploadTooSlow: ProblemType(408, "upload-too-slow", "The upload took too long"),
    BodyTooLarge: ProblemType(413, "body-too-large", "The request is too large"),
    ImageTooLarge: ProblemType(413, "picture-too-large", "The picture has too many pixels"),
    TooManyFiles: ProblemType(413, "too-many-files", "Too many pictures in one request"),
    UnsupportedBody: ProblemType(415, "unsupported-body", "The content type is not accepted"),
    UnsupportedImage: ProblemType(415, "unsupported-picture", "Not a picture format that is accepted"),
    UnreadableImage: ProblemType(422, "unreadable-picture", "The picture is damaged"),
    InvalidTopK: ProblemType(422, "invalid-top-k", "top_k is out of range"),
    UnknownLabel: ProblemType(422, "unknown-label", "There is no such class"),
    RequestValidationError: ProblemType(422, "invalid-parameter", "A parameter is malformed"),
    Exception: ProblemType(500, "internal-error", "The service failed"),
    QueueFull: ProblemType(503, "queue-full", "The service is at capacity"),
    TooManyUploads: ProblemType(503, "too-many-uploads", "Too many uploads are under way"),
    NotReady: ProblemType(503, "not-ready", "The service is not ready"),
    NotAlive: ProblemType(503, "not-alive", "The engine does not answer"),
    DeadlinePassed: ProblemType(504, "deadline-passed", "No answer in time"),
}

MEDIA_TYPE = "application/problem+json"


def slug_of(error: Exception) -> str:
    """The kind of problem, as in its type: "queue-full"; that of a framework's error is its status, as "http-404"."""
    return f"http-{error.status_code}" if isinstance(error, HTTPException) else _kind(error).slug


def _kind(error: Exception) -> ProblemType:
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def problem_of(error: Exception, request_id: str) -> Problem:
    """The problem that tells of `error`; one that the table does not know is our own fault and gives nothing away."""
    kind = _kind(error)
    if kind.status == 500:
        detail = f"the service failed on this request: report it with the request id {request_id}"
    elif isinstance(error, RequestValidationError):
        first = error.errors()[0]
        detail = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    else:
        detail = str(error)
    return Problem(
        type=f"urn:tenfold:{kind.slug}", title=kind.title, status=kind.status, detail=detail, instance=request_id
    )


def problem_response(error: Exception, request_id: str) -> Response:
    """The response that tells of `error`, with Retry-After where a retry makes sense."""
    if isinstance(error, HTTPException):
        phrase = http.HTTPStatus(error.status_code).phrase
        problem = Problem(
            type="about:blank",
            title=phrase,
            status=error.status_code,
            detail=f"{error.detail}: see /docs for what is served",
            instance=request_id,
        )
    else:
        problem = problem_of(error, request_id)
    headers = dict(getattr(error, "headers", None) or {})
    if isinstance(error, ServingError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return Response(problem.model_dump_json(), problem.status, headers, MEDIA_TYPE)


def documented(*kinds: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that can fail in these ways."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in (TABLE[cls] for cls in kinds):
        entry = responses.setdefault(
            kind.status,
            {"description": "", "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}},
        )
        entry["description"] = "; ".join(filter(None, (entry["description"], kind.title)))
    return responses


async def handle(request: Request, error: Exception) -> Response:
    """The response to a request that met `error`, of the table or of the framework."""
    request.state.rejected = slug_of(error)
    return problem_response(error, request.state.request_id)


def install(app: FastAPI) -> None:
    """Answer every exception of the table, and HTTP errors of the framework, with a problem."""
    for cls in (*TABLE, HTTPException):
        if cls is not Exception:  # those pass on to the middleware, which logs them
            app.add_exception_handler(cls, handle)
