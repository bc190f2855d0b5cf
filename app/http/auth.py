"""API keys and admin keys. API keys are checked only if the settings contain any."""

import hmac
from collections.abc import Sequence
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.http.problems import Unauthorized
from app.serving.service import Service

_ABOUT = "One of TENFOLD_API_KEYS. Changing weights needs one of TENFOLD_ADMIN_KEYS, which is accepted everywhere."
_bearer = HTTPBearer(auto_error=False, description=_ABOUT)
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description=_ABOUT)


def check_key(request: Request) -> None:
    """Accept a request that has one of the API keys or admin keys, and any request if there are no API keys.

    Raises:
        Unauthorized: the key is missing or wrong.
    """
    service: Service = request.app.state.service
    settings = service.settings
    if settings.api_keys:
        _check(request, (*settings.api_keys, *settings.admin_keys), "an API key")


def check_admin_key(request: Request) -> None:
    """Accept a request that has one of the admin keys.

    Raises:
        Unauthorized: the key is missing or wrong.
    """
    service: Service = request.app.state.service
    _check(request, service.settings.admin_keys, "an admin key")


def _check(request: Request, keys: Sequence[SecretStr], what: str) -> None:
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    # The other header may be for a proxy, so one valid key is enough.
    bearer = credentials if scheme.lower() == "bearer" else ""
    given = [each.strip().encode() for each in (bearer, request.headers.get("x-api-key", ""))]
    # Every pair is compared, each in constant time, so the duration reveals nothing.
    if not sum(hmac.compare_digest(each, key.get_secret_value().encode()) for each in given for key in keys):
        raise Unauthorized(f"{what} is needed: send one as Authorization: Bearer KEY, or as X-API-Key: KEY")


async def require_key(
    request: Request,
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    _header: Annotated[str | None, Depends(_header)],
) -> None:
    """`check_key` as a dependency, which also documents the two headers in OpenAPI."""
    check_key(request)


async def require_admin_key(
    request: Request,
    _bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    _header: Annotated[str | None, Depends(_header)],
) -> None:
    """`check_admin_key` as a dependency."""
    check_admin_key(request)
