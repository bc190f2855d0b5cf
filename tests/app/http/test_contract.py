"""The OpenAPI schema holds: schemathesis calls every operation, rightly and wrongly, over real HTTP."""

import re
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from schemathesis.core.result import Ok

from app.main import create_app
from app.settings import Settings
from tests.app.fakes import CARD, image_file, photo
from tests.app.http.test_openapi import V2
from tests.app.http.test_problems import PATHS
from tests.app.running import Running
from tests.hostile import corpus

# Image files for parts and bodies, in addition to bytes that schemathesis generates.
_FILES = st.sampled_from([image_file(), photo(), *(sample.data for sample in corpus() if 0 < len(sample.data) < 5_000)])
schemathesis.openapi.media_type("image/*", _FILES | st.binary(max_size=100))

# test_problems.py tests which requests must fail: a schema cannot describe the bytes of an image.
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


OPERATIONS = [
    found.ok()
    for found in schemathesis.openapi.from_dict(create_app(Settings()).openapi()).get_all_operations()
    if isinstance(found, Ok)
]
# The others take nothing that could be wrong.
CASES = [(operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
CASES += [(operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation.path in PATHS]


@pytest.mark.parametrize(
    ("operation", "mode"), CASES, ids=[f"{operation.label} {mode.value}" for operation, mode in CASES]
)
def test_every_response_conforms_to_the_schema(
    operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, running: Running
) -> None:
    statuses = Counter[int]()

    @settings(
        suppress_health_check=list(HealthCheck),
        max_examples=50 if operation.method == "post" else 3,
    )
    @given(operation.as_strategy(generation_mode=mode))
    def holds(case: Case[Any]) -> None:
        if "model_name" in case.path_parameters:  # one that exists, because schemathesis would find none
            case.path_parameters["model_name"] = CARD.name
        response = case.call_and_validate(base_url=f"http://127.0.0.1:{running.port}", checks=CHECKS)
        assert response.status_code != 500
        statuses[response.status_code] += 1

    holds()
    if operation.path.endswith("/infer"):
        assert set(statuses) <= {200, 400, 404, 408, 413, 415, 422, 504}
    elif operation.path == "/v2/repository/index":
        assert set(statuses) <= {200, 413}
    elif operation.path == "/model":
        assert set(statuses) <= {200, 422}, "fields that the card does not have are refused"
    elif operation.path in PATHS:
        assert len(statuses) > (2 if mode is GenerationMode.POSITIVE else 1), "cases that all end alike are too weak"
    else:
        assert set(statuses) == {404 if re.search(r"{(name|model_version)}", operation.path) else 200}


def test_every_operation_is_called() -> None:
    paths = {*PATHS, *V2, "/livez", "/readyz", "/healthz", "/models", "/models/{name}", "/model", "/metrics", "/drift"}
    assert {operation.path for operation in OPERATIONS} == paths
