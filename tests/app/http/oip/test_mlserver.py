"""The published types of MLServer accept every response."""

import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.app.fakes import CARD, image_file, photo
from tests.app.http.oip.clients import mlserver_types
from tests.app.http.routes.test_v2 import batch, binary, images, pixels
from tests.app.running import Running

NAME = CARD.name
IMAGE = f"{NAME}-image"


@pytest.fixture(scope="module")
def types() -> Iterator[ModuleType]:
    """mlserver.types without the package around it, which needs all requirements of the server."""
    folder = mlserver_types()
    name = "mlserver_types"
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
        del sys.modules[loaded]


def validated(model: Any, content: Any) -> Any:
    """The content as a model, and nothing in it that the model does not know."""
    found = model.model_validate(content)
    assert found.model_dump(mode="json") == content
    return found


def test_metadata_and_the_index(running: Running, types: ModuleType) -> None:
    validated(types.MetadataServerResponse, running.client.get("/v2").json())
    for name in (NAME, IMAGE):
        metadata = validated(types.MetadataModelResponse, running.client.get(f"/v2/models/{name}").json())
        assert all(tensor.datatype in ("UINT8", "FP32", "BYTES") for tensor in metadata.inputs + metadata.outputs)
    index = validated(types.RepositoryIndexResponse, running.client.post("/v2/repository/index", json={}).json())
    assert [entry.state for entry in index] == ["READY", "READY"]


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (NAME, pixels(batch(2))),
        (NAME, pixels(batch(2), outputs=[{"name": "logits", "parameters": {"classification": 3}}])),
        (IMAGE, images(image_file(), photo(), id="7")),
    ],
)
def test_requests_and_responses_of_inference(
    running: Running, types: ModuleType, name: str, body: dict[str, Any]
) -> None:
    validated(
        types.InferenceRequest, {**body, "inputs": [{**body["inputs"][0], "shape": list(body["inputs"][0]["shape"])}]}
    )
    response = validated(types.InferenceResponse, running.client.post(f"/v2/models/{name}/infer", json=body).json())
    assert response.model_name == name
    assert response.id
    for output in response.outputs:
        size = 1
        for dimension in output.shape:
            size *= dimension
        assert len(output.data) == size


def test_errors(running: Running, types: ModuleType) -> None:
    infer = f"/v2/models/{NAME}/infer"
    for model, response in (
        (types.MetadataServerErrorResponse, running.client.delete("/v2")),
        (types.MetadataModelErrorResponse, running.client.get("/v2/models/dog")),
        (types.InferenceErrorResponse, running.client.post(infer, content=b"{")),
        (types.InferenceErrorResponse, running.client.post(infer, **binary(batch(1), "FP64"))),
    ):
        assert response.status_code >= 400
        assert validated(model, response.json()).error
