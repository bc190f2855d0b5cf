"""API keys. They are checked only if the settings contain any."""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.http.problems import Unauthorized
from app.serving.service import Service

_bearer = HTTPBearer(auto_error=False, description="One of TENFOLD_API_KEYS.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="One of TENFOLD_API_KEYS.")


def check_key(request: Request) -> None:
    """Accept a request that has one of the keys.

    Raises:
        Unauthorized: the key is missing or wrong.
    """
    service: Service = request.app.state.service
    keys = service.settings.api_keys
    if not keys:
        return
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    given = (credentials if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")).strip().encode()
    # Every key is compared, each in constant time, so the duration reveals nothing.
    if not sum(hmac.compare_digest(given, key.get_secret_value().encode()) for key in keys):
        raise Unauthorized("an API key is needed: send one as Authorization: Bearer KEY, or as X-API-Key: KEY")


async def require_key(
    request: Request,
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    _header: Annotated[str | None, Depends(_header)],
) -> None:
    """`check_key` as a dependency, which also documents the two headers in OpenAPI."""
    check_key(request)
