"""The same requests with and without API keys in the settings have the same responses."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.app.fakes import image_file, photo
from tests.app.running import Running, serving


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Running, Running]]:
    with serving() as open_to_all, serving(api_keys=("key",)) as with_keys:
        yield open_to_all, with_keys


HEADERS: dict[str, Any] = {"X-API-Key": "key", "X-Request-ID": "same"}


def comparable(response: httpx.Response) -> dict[str, Any]:
    """What must not depend on the settings."""
    headers = {name: response.headers.get(name) for name in ("content-type", "content-length", "allow", "connection")}
    return {"status": response.status_code, "body": response.text, **headers}


@pytest.mark.parametrize(
    "query",
    ["", "top_k=1", "top_k=2&views=1", "views=3&min_confidence=0.9", "top_k=%33", "top_k=0", "top_k=x", "views=5"],
)
def test_a_query_gives_the_same_response(both: tuple[Running, Running], query: str) -> None:
    found = [service.client.post(f"/predict?{query}", content=photo(), headers=HEADERS) for service in both]
    assert comparable(found[0]) == comparable(found[1])


@pytest.mark.parametrize(
    "options",
    [
        {"content": b"cat"},
        {"content": b""},
        {"content": b"cat", "headers": {"Content-Type": "text/plain"}},
        {"content": image_file()[:-40]},
        {"content": image_file(), "headers": {"X-Request-Timeout": "nan"}},
        {"files": [("file", ("a.png", image_file())), ("file", ("b.png", b"cat"))]},
        {"files": [("other", ("a.png", image_file()))]},
        {"method": "GET"},
        {"method": "PUT", "content": image_file()},
        {"url": "/predict/", "content": image_file()},
        {"url": "/explain", "content": photo()},
    ],
    ids=" ".join,
)
def test_a_request_gives_the_same_response(both: tuple[Running, Running], options: dict[str, Any]) -> None:
    chosen = {"method": "POST", "url": "/predict", **options}
    chosen["headers"] = HEADERS | chosen.get("headers", {})
    found = [service.client.request(**chosen) for service in both]
    assert comparable(found[0]) == comparable(found[1])


def test_a_request_is_counted_as_its_route(both: tuple[Running, Running]) -> None:
    for service in both:
        service.post(image_file(), headers=HEADERS)
        metrics = service.client.get("/metrics", headers=HEADERS).text
        assert 'tenfold_requests_total{model="fake-net",route="/predict",status="200"}' in metrics
