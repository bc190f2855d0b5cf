"""Parameters of the routes that take images."""

import tracemalloc

import pytest
from starlette.requests import Request

from app.http.parameters import ExplainParams, PredictParams, query_of
from tests.app.fakes import image_file
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Running


def with_query(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode()})


def test_a_short_query_is_parsed_once() -> None:
    first, second = (query_of(with_query("top_k=3&views=2"), PredictParams) for _ in range(2))
    assert first is second
    assert (first.top_k, first.views) == (3, 2)
    assert type(query_of(with_query("top_k=3&views=2"), ExplainParams)) is ExplainParams


def test_long_queries_are_not_kept_in_memory() -> None:
    tracemalloc.start()
    try:
        for number in range(1, 51):
            query = "&".join(["top_k=5"] * 5_000 + [f"top_k={number}"])
            assert query_of(with_query(query), PredictParams).top_k == number
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 400_000, "ten of these queries"


@pytest.mark.parametrize(("name", "path"), [("model", "/predict"), ("model", "/explain"), ("label", "/explain")])
def test_a_long_name_is_refused_and_not_repeated(running: Running, name: str, path: str) -> None:
    for value in ("x" * 257, "\N{CAT FACE}" * 5_000):
        problem = is_a_problem(running.client.post(path, params={name: value}, content=image_file()), 422)
        assert problem["type"] == "urn:tenfold:invalid-parameter"
        assert problem["detail"] == f"query.{name}: String should have at most 256 characters"


@pytest.mark.parametrize(("name", "status", "kind"), [("model", 404, "unknown-model"), ("label", 422, "unknown-label")])
def test_another_name_is_unknown(running: Running, name: str, status: int, kind: str) -> None:
    response = running.client.post("/explain", params={name: "x" * 256}, content=image_file())
    assert is_a_problem(response, status)["type"] == f"urn:tenfold:{kind}"
