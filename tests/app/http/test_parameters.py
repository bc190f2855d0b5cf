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
        start = f"{name} is {value[:50]!r}... ({len(value):,} characters)"
        assert problem["detail"] == f"{start}: send text of 0 to 256 characters"


@pytest.mark.parametrize(("name", "status", "kind"), [("model", 404, "unknown-model"), ("label", 422, "unknown-label")])
def test_another_name_is_unknown(running: Running, name: str, status: int, kind: str) -> None:
    response = running.client.post("/explain", params={name: "x" * 256}, content=image_file())
    assert is_a_problem(response, status)["type"] == f"urn:tenfold:{kind}"


@pytest.mark.parametrize(
    ("path", "query", "says"),
    [
        ("/predict", "views=9", "views is '9': send an integer from 1 to 5"),
        ("/predict", "views=", "views is '': send an integer from 1 to 5"),
        ("/predict", "top_k=1.5", "top_k is '1.5': send an integer"),
        ("/predict", "min_confidence=nan", "min_confidence is 'nan': send a number from 0 to 1"),
        ("/explain", "format=gif", "format is 'gif': send json or png"),
        ("/predict", "topk=3", "there is no parameter 'topk': use top_k"),
        ("/predict", "TOP_K=3", "there is no parameter 'TOP_K': use top_k"),
        ("/explain", "lable=cat", "there is no parameter 'lable': use label"),
        *(
            (
                "/predict",
                f"{name}=x",
                f"there is no parameter {name!r}: choose from model, top_k, views, min_confidence",
            )
            for name in ("label", "lable", "format", "k", "")
        ),
        (
            "/explain",
            f"{'x' * 60}=1",
            f"there is no parameter '{'x' * 50}'... (60 characters): "
            "choose from model, top_k, views, min_confidence, label, format, maps",
        ),
    ],
)
def test_an_error_says_what_the_endpoint_accepts(running: Running, path: str, query: str, says: str) -> None:
    problem = is_a_problem(running.client.post(f"{path}?{query}", content=image_file()), 422)
    assert (problem["type"], problem["detail"]) == ("urn:tenfold:invalid-parameter", says)


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "nan", "1" * 60])
def test_a_timeout_that_is_none_is_named(running: Running, value: str) -> None:
    response = running.post(image_file(), headers={"X-Request-Timeout": value})
    if value == "1" * 60:
        assert response.status_code == 200, "it is limited to that of the service"
        return
    assert is_a_problem(response, 422)["detail"] == f"X-Request-Timeout is {value!r}: send a number above 0"
