"""The errors under /v2: {"error": ...}."""

import json
from typing import Any

from starlette.responses import Response

from app.http import problems
from app.http.oip.schemas import InferenceError


def error_response(error: Exception, request_id: str) -> Response:
    """The response that reports `error`, with the status and headers that it has elsewhere."""
    problem, headers = problems.report(error, request_id)
    return Response(json.dumps({"error": problem.detail}), problem.status, headers, "application/json")


def documented(*errors: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI `responses` of a route that can fail with these errors."""
    return {
        status: {"description": entry["description"], "model": InferenceError}
        for status, entry in problems.documented(*errors).items()
    }
