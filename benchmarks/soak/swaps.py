"""Swaps of weights at regular intervals."""

import asyncio
import json
from collections import Counter

from benchmarks.soak.wire import NoResponse, Pool

ADMIN_KEY = "soak"
"""Of the service."""

# Seconds for the response, while the service is overloaded.
_TIMEOUT = 120.0


async def swap_regularly(port: int, model: str, interval: float, outcomes: Counter[str]) -> None:
    """Let the service load the folder of a model again and again, until this is cancelled.

    Args:
        port: of the service.
        model: its name.
        interval: seconds from one swap to the next.
        outcomes: counts the responses by status, or by the reason why there was none.
    """
    head = f"POST /models/{model} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {ADMIN_KEY}\r\nContent-Length: 0\r\n\r\n"
    pool = Pool(port, _TIMEOUT)
    try:
        while True:
            try:
                outcomes[str((await pool.send(head.encode())).status)] += 1
            except NoResponse as error:
                outcomes[str(error)] += 1
            await asyncio.sleep(interval)
    finally:
        pool.close()


async def model_name(pool: Pool) -> str:
    """The name of the default model."""
    request = f"GET /models HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {ADMIN_KEY}\r\n\r\n"
    name: str = json.loads((await pool.send(request.encode())).body)["default"]
    return name
