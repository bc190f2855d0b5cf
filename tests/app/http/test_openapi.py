import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.http.problems import MEDIA_TYPE
from app.http.schemas import Problem
from model import MAX_VIEWS
from tests.app.http.test_problems import CASES, PATHS
from tests.app.running import Running, serving

INFER = {"200", "400", "401", "404", "408", "413", "415", "422", "500", "503", "504"}
MODEL = {"200", "401", "404", "503"}
V2: dict[str, tuple[str, set[str]]] = {
    "/v2": ("get", {"200", "401"}),
    "/v2/health/live": ("get", {"200", "503"}),
    "/v2/health/ready": ("get", {"200", "503"}),
    "/v2/models": ("get", {"200", "401"}),
    "/v2/models/stats": ("get", {"200", "401"}),
    "/v2/repository/index": ("post", {"200", "400", "401", "408", "413", "503", "504"}),
    **{
        f"/v2/models/{{model_name}}{version}{path}": found
        for version in ("", "/versions/{model_version}")
        for path, found in {
            "": ("get", MODEL),
            "/config": ("get", MODEL),
            "/stats": ("get", MODEL),
            "/ready": ("get", {"200", "404", "503"}),
            "/infer": ("post", INFER),
        }.items()
    },
}
"""Path of the Open Inference Protocol -> its method and statuses."""


@pytest.fixture(scope="module")
def schema(running: Running) -> dict[str, Any]:
    found: dict[str, Any] = running.client.get("/openapi.json").json()
    return found


def references(node: Any) -> set[str]:
    """Every $ref in a part of the schema."""
    if isinstance(node, dict):
        own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
        return own.union(*(references(value) for value in node.values()))
    if isinstance(node, list):
        return set().union(*(references(value) for value in node))
    return set()


def operations(schema: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): entry for path, entries in schema["paths"].items() for method, entry in entries.items()}


@pytest.mark.parametrize("path", PATHS)
def test_exactly_the_statuses_that_can_be_provoked_are_documented(schema: dict[str, Any], path: str) -> None:
    provoked = {str(case.status) for case in CASES if path in case.paths} | {"200"}
    assert set(schema["paths"][path]["post"]["responses"]) == provoked


def test_every_failure_is_documented_as_a_problem(schema: dict[str, Any]) -> None:
    for (method, path), operation in operations(schema).items():
        media_type, name = ("application/json", "InferenceError") if path in V2 else (MEDIA_TYPE, "Problem")
        for status, response in operation["responses"].items():
            if status != "200":
                reference = {"$ref": f"#/components/schemas/{name}"}
                assert response["content"] == {media_type: {"schema": reference}}, (method, path, status)
                assert response["description"], (method, path, status)


def test_the_problem_has_its_five_members(schema: dict[str, Any]) -> None:
    component = schema["components"]["schemas"]["Problem"]
    assert set(component["properties"]) == {"type", "title", "status", "detail", "instance"}
    assert set(component["required"]) == set(component["properties"])
    assert all(entry["description"] for entry in component["properties"].values())
    Problem.model_validate(dict.fromkeys(component["properties"], "x") | {"status": 400})


def test_the_errors_of_the_framework_are_not_documented(schema: dict[str, Any]) -> None:
    assert not [name for name in schema["components"]["schemas"] if "Validation" in name]


def test_every_reference_resolves_and_every_component_is_used(schema: dict[str, Any]) -> None:
    components = {f"#/components/schemas/{name}" for name in schema["components"]["schemas"]}
    assert references(schema) == components


def test_the_served_paths_are_the_documented_ones(schema: dict[str, Any]) -> None:
    statuses = {path: set(entry["get"]["responses"]) for path, entry in schema["paths"].items() if "get" in entry}
    assert statuses == {
        "/livez": {"200", "503"},
        "/readyz": {"200", "503"},
        "/healthz": {"200", "503"},
        "/models": {"200", "401"},
        "/models/{name}": {"200", "401", "404", "422", "503"},
        "/model": {"200", "401", "422", "503"},
        "/metrics": {"200", "401"},
        "/drift": {"200", "401"},
        **{path: statuses for path, (method, statuses) in V2.items() if method == "get"},
    }


@pytest.mark.parametrize("path", V2)
def test_the_paths_of_the_open_inference_protocol_are_documented(schema: dict[str, Any], path: str) -> None:
    method, statuses = V2[path]
    assert set(schema["paths"][path]) == {method}
    assert set(schema["paths"][path][method]["responses"]) == statuses


def test_the_body_of_predict_is_documented(schema: dict[str, Any]) -> None:
    body = schema["paths"]["/predict"]["post"]["requestBody"]
    assert body["required"] is True
    assert set(body["content"]) == {"multipart/form-data", "application/json", "image/*", "application/octet-stream"}
    form = body["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert form["properties"]["file"]["items"]["format"] == "binary"


def test_explain_accepts_one_file_and_returns_json_or_png(schema: dict[str, Any]) -> None:
    operation = schema["paths"]["/explain"]["post"]
    body = operation["requestBody"]
    assert body["required"] is True
    assert set(body["content"]) == {"multipart/form-data", "application/json", "image/*", "application/octet-stream"}
    form = body["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert form["properties"]["file"] == {"type": "string", "format": "binary"}
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "image/png"}


def test_the_fields_of_an_explanation_are_documented(schema: dict[str, Any]) -> None:
    for name, fields in (
        ("Explanation", {"model", "result", "label", "index", "probability", "method", "views"}),
        ("ExplainedView", {"box", "input", "map", "weight", "maps"}),
    ):
        component = schema["components"]["schemas"][name]
        assert set(component["properties"]) == set(component["required"]) == fields
        for field, entry in component["properties"].items():
            assert "$ref" in entry or entry["description"].endswith("."), field


@pytest.mark.parametrize(("path", "more"), [("/predict", set()), ("/explain", {"label", "format", "maps"})])
def test_the_parameters_are_documented_with_their_ranges(schema: dict[str, Any], path: str, more: set[str]) -> None:
    parameters = {entry["name"]: entry for entry in schema["paths"][path]["post"]["parameters"]}
    assert set(parameters) == {"model", "top_k", "views", "min_confidence", "x-request-timeout"} | more
    for name, entry in parameters.items():
        assert entry["in"] == ("header" if name == "x-request-timeout" else "query"), name
        assert entry["required"] is False, name
        assert entry["description"].endswith("."), name
    null = {"type": "null"}
    assert parameters["views"]["schema"]["anyOf"] == [{"type": "integer", "minimum": 1, "maximum": MAX_VIEWS}, null]
    assert parameters["min_confidence"]["schema"]["anyOf"] == [{"type": "number", "minimum": 0, "maximum": 1}, null]


def test_the_fields_of_a_result_are_documented(schema: dict[str, Any]) -> None:
    component = schema["components"]["schemas"]["ImageResult"]
    fields = {"filename", "width", "height", "top_k", "in_distribution", "verdict", "accepted", "views", "warnings"}
    assert set(component["properties"]) == set(component["required"]) == fields
    documented: dict[str, tuple[str, dict[str, Any]]] = {
        "in_distribution": ("number", {"minimum": 0, "maximum": 1}),
        "verdict": ("string", {"enum": ["accepted", "uncertain", "other"]}),
        "accepted": ("boolean", {}),
        "views": ("integer", {"minimum": 1}),
    }
    for name, (kind, limits) in documented.items():
        entry = component["properties"][name]
        assert entry["type"] == kind, name
        assert entry.items() >= limits.items(), name
        assert entry["description"].endswith("."), name


def test_operations_have_unique_names_and_a_summary(schema: dict[str, Any]) -> None:
    entries = operations(schema)
    names = [entry["operationId"] for entry in entries.values()]
    assert len(set(names)) == len(names)
    assert {"predict", "explain", "readyz", "healthz"} <= set(names)
    for key, entry in entries.items():
        assert entry["summary"], key
        assert not entry["summary"].startswith("V2"), "a sentence, not the path"
        assert entry["description"], key
        assert entry["tags"], key


def schemas(node: Any) -> Iterator[dict[str, Any]]:
    """Every part of the schema that is an object."""
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from schemas(value)


def test_what_generators_and_linters_of_clients_need(tmp_path: Path) -> None:
    """Rules of Spectral's set spectral:oas, on a service with all routes."""
    with serving(api_keys=("key",), admin_keys=("admin",), feedback=tmp_path / "feedback") as service:
        schema = service.client.get("/openapi.json").json()
    assert [server["url"] for server in schema["servers"]] == ["."], "a prefix of a proxy is not known"
    tags = {tag["name"] for tag in schema["tags"]}
    assert all(tag["description"] for tag in schema["tags"])
    names = set()
    for (method, path), operation in operations(schema).items():
        where = (method, path)
        assert set(operation["tags"]) <= tags, where
        assert re.fullmatch(r"[a-z0-9_]+", operation["operationId"]), where
        assert operation["operationId"] not in names, where
        names.add(operation["operationId"])
        parameters = operation.get("parameters", [])
        in_path = [entry["name"] for entry in parameters if entry["in"] == "path"]
        assert in_path == re.findall(r"{(\w+)}", path), where
        for entry in parameters:
            assert entry["in"] != "header" or "anyOf" not in entry["schema"], "a header cannot be null"
    for part in schemas(schema):
        assert part.get("type") != "array" or "items" in part, part
        assert "enum" not in part or len(set(part["enum"])) == len(part["enum"]), part
        if isinstance(part.get("required"), list) and "properties" in part:
            assert set(part["required"]) <= set(part["properties"]), part
    (top_k,) = (entry for entry in schema["paths"]["/predict"]["post"]["parameters"] if entry["name"] == "top_k")
    assert "default" not in top_k["schema"], "a client that sends 5 fails with a model of two classes"


def test_the_schema_states_its_version(schema: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d", schema["openapi"])
    assert schema["info"]["title"] == "Tenfold"


def test_the_pages_of_the_documentation_are_served(running: Running) -> None:
    assert running.client.get("/docs").status_code == 200
    assert running.client.get("/", follow_redirects=True).status_code == 200
