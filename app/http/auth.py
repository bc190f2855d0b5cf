"""Who gets in: API keys. Routes ask for one only where the settings name any, for to ask takes time."""

import hmac
from typing import Annotated

from fastapi import Depends
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.http.problems import Unauthorized
from app.serving.service import Service, service_of

_bearer = HTTPBearer(auto_error=False, description="One of TENFOLD_API_KEYS.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same.")


async def require_key(
    service: Annotated[Service, Depends(service_of)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> None:
    """Let a request pass that brings one of the keys.

    A coroutine, though it awaits nothing: FastAPI sends a plain function to a thread.

    Raises:
        Unauthorized: it brings none, or a wrong one.
    """
    given = (bearer.credentials if bearer else header or "").encode()
    # Every key is compared, and each in constant time, so that timing tells nothing.
    if not sum(hmac.compare_digest(given, key.get_secret_value().encode()) for key in service.settings.api_keys):
        raise Unauthorized("this needs an API key: send one as Authorization: Bearer KEY, or as X-API-Key: KEY")
