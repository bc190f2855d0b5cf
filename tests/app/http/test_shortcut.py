"""The same requests by the shortcut and, where a key is asked for, by FastAPI: the same answers."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.app.fakes import photo, picture
from tests.app.running import Running, serving


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Running, Running]]:
    with serving() as short, serving(api_keys=("key",)) as long:
        yield short, long


SENT: dict[str, Any] = {"X-API-Key": "key", "X-Request-ID": "same"}


def told(answer: httpx.Response) -> dict[str, Any]:
    """What must not depend on the way that a request took."""
    headers = {name: answer.headers.get(name) for name in ("content-type", "content-length", "allow", "connection")}
    return {"status": answer.status_code, "body": answer.text, **headers}


@pytest.mark.parametrize(
    "query",
    [
        *("", "top_k=1", "top_k=10", "top_k=2&views=1", "views=3&min_confidence=0.9", "top_k=%33", "min_confidence=1"),
        *("top_k=0", "top_k=11", "top_k=-1", "top_k=x", "top_k=", "top_k=1.5", "top_k=3.0", "top_k=+3", "top_k= 3"),
        *("views=0", "views=5", "views=", "views=2.5", "min_confidence=2", "min_confidence=nan", "min_confidence=inf"),
        *("min_confidence=", "top_k=1&top_k=2", "top_k=x&top_k=2", "other=1", "top_k", "&&", "=", "TOP_K=1"),
        *("top_k=x&views=x", "top_k=%ff", "top_k=1;views=9", "top_k=99999999999999999999999"),
    ],
)
def test_a_query_means_the_same(both: tuple[Running, Running], query: str) -> None:
    found = [told(service.client.post(f"/predict?{query}", content=photo(), headers=SENT)) for service in both]
    assert found[0] == found[1]


@pytest.mark.parametrize("timeout", ["5", "0.5", "1e3", "0", "-1", "x", "", "nan", "inf"])
def test_a_deadline_means_the_same(both: tuple[Running, Running], timeout: str) -> None:
    headers = SENT | {"X-Request-Timeout": timeout}
    found = [told(service.post(picture(), headers=headers)) for service in both]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "options",
    [
        {"content": picture()},
        {"content": b"cat"},
        {"content": b""},
        {"content": b"cat", "headers": {"Content-Type": "text/plain"}},
        {"content": picture()[:-40]},
        {"files": [("file", ("a.png", picture())), ("file", ("b.png", b"cat"))]},
        {"files": [("other", ("a.png", picture()))]},
        {"method": "GET"},
        {"method": "PUT", "content": picture()},
        {"method": "OPTIONS"},
        {"url": "/predict/", "content": picture()},
        {"url": "//predict", "content": picture()},
    ],
    ids=" ".join,
)
def test_a_request_means_the_same(both: tuple[Running, Running], options: dict[str, Any]) -> None:
    chosen = {"method": "POST", "url": "/predict", **options}
    chosen["headers"] = SENT | chosen.get("headers", {})
    answers = [service.client.request(**chosen) for service in both]
    assert told(answers[0]) == told(answers[1])
    ways = [answer.headers.get("location", "").removeprefix(str(answer.url.copy_with(path="/"))) for answer in answers]
    assert ways[0] == ways[1]


def test_it_is_counted_as_its_route(both: tuple[Running, Running]) -> None:
    for service in both:
        metrics = service.client.get("/metrics", headers=SENT).text
        assert 'tenfold_requests_total{route="/predict",status="200"}' in metrics
        assert 'tenfold_requests_total{route="/predict",status="422"}' in metrics
