"""A client that openapi-python-client generates from the schema, unmodified, in an environment of its own."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.app.fakes import CARD, image_file
from tests.app.http.oip.clients import client_generator
from tests.app.running import serving

_PROGRAM = Path(__file__).with_name("generated_client.py")
_PARSED = {
    "predict": "Predictions",
    "explain": "Explanation",
    "models": "Models",
    "card": "ServedCard",
    "default_card": "ServedCard",
    "metrics": "str",
    "drift": "DriftReport",
    "feedback": "StoredFeedback",
    "livez": "Health",
    "readyz": "Health",
    "healthz": "Health",
    "latest": "SwapReport",
    "v2": "ServerMetadata",
    "v2_health_live": "ServerLive",
    "v2_health_ready": "ServerReady",
    "v2_models": "ModelList",
    "v2_models_stats": "Statistics",
    "v2_repository_index": "list",
    **{
        f"v2_models_model_name{version}{operation}": parsed
        for version in ("", "_versions_model_version")
        for operation, parsed in {
            "": "ModelMetadata",
            "_config": "ModelConfig",
            "_stats": "Statistics",
            "_ready": "ModelReady",
            "_infer": "InferenceResponse",
        }.items()
    },
}
"""Operation -> what the client makes of a response with status 200."""
_REFUSED = {"swap": 422, "roll_back": 409, "confirm": 409, "end": 409}
"""Operation -> status of a request that changes weights, because the classifier of the tests is not from a folder."""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `client`, generated from the schema of a service with all operations."""
    folder = tmp_path_factory.mktemp("generated")
    chosen: dict[str, Any] = {"api_keys": ("secret",), "admin_keys": ("secret",), "feedback": folder / "none"}
    with serving(**chosen) as service:
        (folder / "openapi.json").write_bytes(service.client.get("/openapi.json").content)
    options = ["--path", "openapi.json", "--output-path", "client", "--meta", "none"]
    done = subprocess.run(
        [client_generator(), "-m", "openapi_python_client", "generate", *options],
        cwd=folder,
        env={"PATH": str(client_generator().parent)},  # its formatter is there
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    found = done.stdout + done.stderr
    assert done.returncode == 0, found
    # It generates nothing for ranges of media types, and each operation that has one also has another type.
    assert found.count("WARNING") == found.count("Unsupported content type image/*"), found
    return folder


@pytest.mark.parametrize("key", ["", "secret"])
def test_a_generated_client_calls_every_operation_and_reads_every_response(
    package: Path, tmp_path: Path, key: str
) -> None:
    keys: dict[str, Any] = {"api_keys": (key,), "admin_keys": (key,)} if key else {}
    image = tmp_path / "cat.png"
    image.write_bytes(image_file())
    with serving(feedback=tmp_path / "feedback.sqlite", **keys) as service:
        url = f"http://127.0.0.1:{service.port}"
        schema: dict[str, Any] = service.client.get("/openapi.json").json()
        done = subprocess.run(
            [client_generator(), _PROGRAM, package, url, CARD.name, key, image],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    operations = {entry["operationId"] for path in schema["paths"].values() for entry in path.values()}
    assert {name for name, _, _ in calls} == operations
    for name, status, parsed in calls[:7] + calls[9:]:
        assert (status, parsed) == ((_REFUSED[name], "Problem") if name in _REFUSED else (200, _PARSED[name])), name
    assert calls[7:9] == [["card", 200, "SelectedFields"], ["default_card", 200, "SelectedFields"]]
    assert operations == {*_PARSED, *_REFUSED} - (set() if key else {*_REFUSED, "latest"})


@pytest.mark.parametrize("key", ["", "secret"])
def test_security_is_documented_where_a_key_is_needed(key: str) -> None:
    with serving(api_keys=(key,) if key else ()) as service:
        schema = service.client.get("/openapi.json").json()
        open_to_all = {"/livez", "/readyz", "/healthz"}
        for path, entries in schema["paths"].items():
            for operation in entries.values():
                probe = path in open_to_all or path.endswith(("/ready", "/live"))
                assert bool(operation.get("security")) == bool(key and not probe), path
        assert ("securitySchemes" in schema["components"]) == bool(key)
