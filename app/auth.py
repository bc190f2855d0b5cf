"""Who gets in: API keys, where the settings have any."""

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.problems import Unauthorized
from app.service import service_of

_bearer = HTTPBearer(auto_error=False, description="One of TENFOLD_API_KEYS, where there are any.")
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description="The same.")


def require_key(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    header: Annotated[str | None, Depends(_header)],
) -> None:
    """Let a request pass that brings one of the keys, or any where there are none.

    Raises:
        Unauthorized: it brings none, or a wrong one.
    """
    keys = service_of(request).settings.api_keys
    if not keys:
        return
    given = (bearer.credentials if bearer else header or "").encode()
    # Every key is compared, and each in constant time, so that timing tells nothing.
    if not sum(hmac.compare_digest(given, key.get_secret_value().encode()) for key in keys):
        raise Unauthorized("this needs an API key: send one as Authorization: Bearer KEY, or as X-API-Key: KEY")


KeyRequired = Depends(require_key)
