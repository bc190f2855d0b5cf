"""benchmarks.soak: HAProxy and the load for replicas; tests/deploy/test_rehearse.py updates some."""

import asyncio

import pytest

from benchmarks.soak.clients import ServiceError
from benchmarks.soak.phases import load
from benchmarks.soak.proxy import Proxy
from tests.app.running import serving


def test_a_missing_proxy_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServiceError, match="haproxy is not installed"):
        Proxy([8000], retries=0)


def test_an_error_during_the_load_is_not_wrapped_and_ends_the_clients() -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n"

    async def fail(port: int) -> None:
        async with load(port, 2, [request]):
            raise ServiceError("a replica has ended")

    with serving() as service, pytest.raises(ServiceError, match="a replica has ended"):
        asyncio.run(asyncio.wait_for(fail(service.port), 30))
