"""Triton's client, unmodified."""

import asyncio
import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from tests.app.fakes import CARD, LABELS, image_file, random_pixels
from tests.app.running import Running
from tests.documents import ROOT, blocks, read

NAME = CARD.name
IMAGE = f"{NAME}-image"
VERSION = str(int(CARD.version, 16))
COMPRESSIONS = (None, "gzip", "deflate")


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{running.port}", concurrency=4) as client:
        yield client


def pixels(array: NDArray[Any], *, binary: bool = True) -> triton.InferInput:
    """The input of NAME."""
    given = triton.InferInput("pixels", array.shape, {"uint8": "UINT8", "float32": "FP32"}[array.dtype.name])
    return given.set_data_from_numpy(array, binary_data=binary)


def images(*files: bytes) -> triton.InferInput:
    """The input of NAME-image."""
    given = triton.InferInput("image", [len(files), 1], "BYTES")
    return given.set_data_from_numpy(np.array([[file] for file in files], np.object_))


def batch(count: int) -> NDArray[np.uint8]:
    return np.stack([random_pixels(seed) for seed in range(count)])


@pytest.fixture(scope="module")
def predicted(running: Running) -> list[str]:
    """The labels of `batch(3)` from /predict."""
    files = [("a.png", image_file(seed)) for seed in range(3)]
    return [result["top_k"][0]["label"] for result in running.upload(*files).json()["results"]]


def labels_of(result: triton.InferResult) -> list[str]:
    """The most probable class of each image."""
    return [LABELS[index] for index in result.as_numpy("probabilities").argmax(axis=1)]


def test_probes(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(NAME)
    assert client.is_model_ready(IMAGE, VERSION)
    assert not client.is_model_ready("dog")
    assert not client.is_model_ready(NAME, "7")


def test_metadata_configuration_index_and_statistics(client: triton.InferenceServerClient) -> None:
    assert client.get_server_metadata()["name"] == "tenfold"
    for name in (NAME, IMAGE):
        metadata = client.get_model_metadata(name)
        assert metadata == client.get_model_metadata(name, VERSION)
        config = client.get_model_config(name, VERSION)
        assert config["max_batch_size"] == 32
        for described, configured in (("inputs", "input"), ("outputs", "output")):
            assert [entry["name"] for entry in metadata[described]] == [entry["name"] for entry in config[configured]]
            assert [entry["shape"][1:] for entry in metadata[described]] == [
                entry["dims"] for entry in config[configured]
            ]
        (found,) = client.get_inference_statistics(name, VERSION)["model_stats"]
        assert found["name"] == name
    assert [entry["name"] for entry in client.get_model_repository_index()] == [NAME, IMAGE]
    assert len(client.get_inference_statistics()["model_stats"]) == 2


@pytest.mark.parametrize("response_compression", COMPRESSIONS)
@pytest.mark.parametrize("request_compression", COMPRESSIONS)
def test_binary_pixels_with_every_compression(
    client: triton.InferenceServerClient,
    predicted: list[str],
    request_compression: str | None,
    response_compression: str | None,
) -> None:
    result = client.infer(
        NAME,
        [pixels(batch(3))],
        request_id="7",
        request_compression_algorithm=request_compression,
        response_compression_algorithm=response_compression,
    )
    assert result.get_response()["id"] == "7"
    assert "binary_data_size" in result.get_output("logits")["parameters"], "no outputs requested: all in binary form"
    assert result.as_numpy("logits").shape == (3, 10)
    assert labels_of(result) == predicted


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_a_large_response_is_compressed(running: Running, compression: str) -> None:
    body, length = triton.InferenceServerClient.generate_request_body([pixels(batch(32))])
    headers = {"Inference-Header-Content-Length": str(length), "Accept-Encoding": compression}
    response = running.client.post(f"/v2/models/{NAME}/infer", content=body, headers=headers)
    assert response.headers["Content-Encoding"] == compression
    header = int(response.headers["Inference-Header-Content-Length"])
    result = triton.InferenceServerClient.parse_response_body(response.content, header_length=header)
    assert result.as_numpy("probabilities").shape == (32, 10)


@pytest.mark.parametrize("datatype", [np.uint8, np.float32])
@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_every_form_of_the_tensors(
    client: triton.InferenceServerClient, predicted: list[str], datatype: Any, binary_input: bool, binary_output: bool
) -> None:
    outputs = [triton.InferRequestedOutput("probabilities", binary_data=binary_output)]
    result = client.infer(NAME, [pixels(batch(3).astype(datatype), binary=binary_input)], VERSION, outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["probabilities"]
    assert labels_of(result) == predicted


def test_images_and_classifications(client: triton.InferenceServerClient, predicted: list[str]) -> None:
    outputs = [
        triton.InferRequestedOutput("label"),
        triton.InferRequestedOutput("probabilities", class_count=2),
        triton.InferRequestedOutput("logits", binary_data=False, class_count=1),
    ]
    result = client.infer(IMAGE, [images(*[image_file(seed) for seed in range(3)])], outputs=outputs)
    assert [label.decode() for label in result.as_numpy("label").ravel()] == predicted
    ranked = result.as_numpy("probabilities")
    assert ranked.shape == (3, 2)
    assert [text.decode().split(":")[2] for text in ranked[:, 0]] == predicted
    assert [text.split(":")[2] for text in result.as_numpy("logits").ravel()] == predicted


def test_requests_in_parallel(client: triton.InferenceServerClient) -> None:
    pending = [client.async_infer(NAME, [pixels(random_pixels(seed)[None])]) for seed in range(12)]
    found = [labels_of(handle.get_result())[0] for handle in pending]
    assert found == labels_of(client.infer(NAME, [pixels(batch(12))]))


def test_the_asynchronous_client(running: Running, predicted: list[str]) -> None:
    async def talk() -> list[list[str]]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{running.port}") as client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready(NAME)
            assert (await client.get_server_metadata())["name"] == "tenfold"
            assert (await client.get_model_metadata(NAME))["name"] == NAME
            assert (await client.get_model_config(NAME))["max_batch_size"] == 32
            assert len(await client.get_model_repository_index()) == 2
            assert (await client.get_inference_statistics(NAME))["model_stats"]
            results = await asyncio.gather(
                *(
                    client.infer(
                        NAME,
                        [pixels(batch(3))],
                        request_compression_algorithm=compression,
                        response_compression_algorithm=compression,
                    )
                    for compression in COMPRESSIONS
                ),
                client.infer(IMAGE, [images(*[image_file(seed) for seed in range(3)])]),
            )
            return [labels_of(result) for result in results]

    assert asyncio.run(talk()) == [predicted] * 4


@pytest.mark.parametrize(
    ("name", "given", "status", "says"),
    [
        ("dog", pixels(batch(1)), "404", "there is no model 'dog'"),
        (NAME, images(image_file()), "400", "has no input 'image'"),
        (IMAGE, images(b"no image"), "415", "this is not an image"),
        (NAME, pixels(batch(33)), "413", "more than 32 images"),
    ],
)
def test_errors_are_exceptions_with_the_message(
    client: triton.InferenceServerClient, name: str, given: triton.InferInput, status: str, says: str
) -> None:
    with pytest.raises(InferenceServerException, match=says) as caught:
        client.infer(name, [given])
    assert caught.value.status() == status


def test_the_example_in_the_document_runs(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks(read("docs/open-inference-protocol.md"), "python")
    for before, after in (("127.0.0.1:8000", f"127.0.0.1:{running.port}"), ("resnet18-cifar10", NAME)):
        assert before in example
        example = example.replace(before, after)
    with contextlib.chdir(ROOT):
        exec(compile(example, "example", "exec"), {})
    label, *ranked = capsys.readouterr().out.splitlines()
    assert label in LABELS
    assert re.search(rf"0\.\d+:\d:{label}", ranked[0])
