"""The OpenAPI description that the protocol publishes, called by schemathesis.

The description is rebuilt here: its paths, methods, required fields and types are those of
specification/protocol/open_inference_rest.yaml in https://github.com/kserve/open-inference-protocol.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error, response_schema_conformance
from schemathesis.core.result import Ok

from tests.app.fakes import CARD
from tests.app.http.routes.test_v2 import batch, pixels
from tests.app.running import Running

VERSION = str(int(CARD.version, 16))
STRING, INTEGER = {"type": "string"}, {"type": "integer"}


def record(required: str, **properties: Any) -> dict[str, Any]:
    """A schema of an object."""
    return {"type": "object", "required": required.split(), "properties": properties}


def array(items: Mapping[str, Any]) -> dict[str, Any]:
    """A schema of a list."""
    return {"type": "array", "items": items}


def reference(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


PARAMETERS, DATA = reference("parameters"), reference("tensor_data")
SCHEMAS = {
    "metadata_server_response": record(
        "name version extensions", name=STRING, version=STRING, extensions=array(STRING)
    ),
    "metadata_model_response": record(
        "name platform",
        name=STRING,
        versions=array(STRING),
        platform=STRING,
        inputs=array(reference("metadata_tensor")),
        outputs=array(reference("metadata_tensor")),
    ),
    "metadata_tensor": record("name datatype shape", name=STRING, datatype=STRING, shape=array(INTEGER)),
    "inference_request": record(
        "inputs",
        id=STRING,
        parameters=PARAMETERS,
        inputs=array(reference("request_input")),
        outputs=array(reference("request_output")),
    ),
    "parameters": {"type": "object"},
    "request_input": record(
        "name shape datatype data", name=STRING, shape=array(INTEGER), datatype=STRING, parameters=PARAMETERS, data=DATA
    ),
    "tensor_data": array({"anyOf": [DATA, {"type": "number"}, STRING, {"type": "boolean"}]}),
    "request_output": record("name", name=STRING, parameters=PARAMETERS),
    "response_output": record(
        "name shape datatype data", name=STRING, shape=array(INTEGER), datatype=STRING, parameters=PARAMETERS, data=DATA
    ),
    "inference_response": record(
        "model_name outputs",
        model_name=STRING,
        model_version=STRING,
        id=STRING,
        parameters=PARAMETERS,
        outputs=array(reference("response_output")),
    ),
    "error": record("error", error=STRING),
}


def responses(success: str | None = None) -> dict[str, Any]:
    """Of an operation: the schema of the success, and errors with any status."""
    content = {"content": {"application/json": {"schema": reference(success)}}} if success else {}
    return {
        "200": {"description": "OK", **content},
        "default": {"description": "Error", "content": {"application/json": {"schema": reference("error")}}},
    }


MODEL = "/v2/models/{MODEL_NAME}/versions/{MODEL_VERSION}"
IN_PATH = [{"name": name, "in": "path", "required": True, "schema": STRING} for name in ("MODEL_NAME", "MODEL_VERSION")]
BODY = {"required": True, "content": {"application/json": {"schema": reference("inference_request")}}}
PUBLISHED = {
    "openapi": "3.0.0",
    "info": {"title": "Data Plane", "version": "2.0"},
    "paths": {
        "/v2/health/live": {"get": {"responses": responses()}},
        "/v2/health/ready": {"get": {"responses": responses()}},
        f"{MODEL}/ready": {"parameters": IN_PATH, "get": {"responses": responses()}},
        "/v2/": {"get": {"responses": responses("metadata_server_response")}},
        MODEL: {"parameters": IN_PATH, "get": {"responses": responses("metadata_model_response")}},
        f"{MODEL}/infer": {
            "parameters": IN_PATH,
            "post": {"requestBody": BODY, "responses": responses("inference_response")},
        },
    },
    "components": {"schemas": SCHEMAS},
}
OPERATIONS = [
    found.ok() for found in schemathesis.openapi.from_dict(PUBLISHED).get_all_operations() if isinstance(found, Ok)
]
CASES = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
# The others take nothing that could be wrong.
CASES += [(operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation.method == "post"]


def call(
    operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, running: Running, prepare: Any
) -> Counter[int]:
    """Call an operation with generated requests, and return their statuses."""
    statuses = Counter[int]()

    @settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), max_examples=15)
    @given(operation.as_strategy(generation_mode=mode))
    def holds(case: Case[Any]) -> None:
        prepare(case)
        response = case.call_and_validate(
            base_url=f"http://127.0.0.1:{running.port}", checks=[not_a_server_error, response_schema_conformance]
        )
        statuses[response.status_code] += 1

    holds()
    return statuses


@pytest.mark.parametrize(
    ("operation", "mode"), CASES, ids=[f"{operation.label} {mode.value}" for operation, mode in CASES]
)
def test_any_request_gets_a_response_of_the_published_schema(
    operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, running: Running
) -> None:
    statuses = call(operation, mode, running, lambda case: None)
    assert all(status == 200 or 400 <= status < 500 for status in statuses)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_the_model_gets_responses_of_the_published_schema(
    operation: APIOperation[Any, Any, Any, Any], running: Running
) -> None:
    def name_the_model(case: Case[Any]) -> None:
        if case.path_parameters:
            case.path_parameters.update(MODEL_NAME=CARD.name, MODEL_VERSION=VERSION)
        if operation.method == "post":
            fields = case.body if isinstance(case.body, dict) else {}
            kept = {name: value for name, value in fields.items() if name in ("id", "parameters")}
            case.body = {**kept, **pixels(batch(1))}

    statuses = call(operation, GenerationMode.POSITIVE, running, name_the_model)
    assert statuses[200] > 0
    assert set(statuses) <= {200, 400}
