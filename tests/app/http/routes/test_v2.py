"""The Open Inference Protocol under /v2, without the clients of others: see tests/app/http/oip for those."""

import base64
import gzip
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from app.http.oip.messages import HEADER_LENGTH
from model import MAX_VIEWS, Classifier, preprocess
from tests.app.fakes import CARD, LABELS, FakeEngine, fake_classifier, image_file, photo, random_pixels
from tests.app.running import Running, eventually, serving

NAME = CARD.name
IMAGE = f"{NAME}-image"
VERSION = str(int(CARD.version, 16))
INFER = f"/v2/models/{NAME}/infer"
INFER_IMAGE = f"/v2/models/{IMAGE}/infer"


def batch(count: int = 1) -> NDArray[np.uint8]:
    """uint8[count, 32, 32, 3], no two alike."""
    return np.stack([random_pixels(seed) for seed in range(count)])


def pixels(array: NDArray[Any], datatype: str = "UINT8", **more: Any) -> dict[str, Any]:
    """A request with pixels in JSON."""
    tensor = {"name": "pixels", "datatype": datatype, "shape": array.shape, "data": array.ravel().tolist()}
    return {"inputs": [tensor], **more}


def images(*files: bytes, **more: Any) -> dict[str, Any]:
    """A request with encoded images in JSON."""
    data = [base64.b64encode(file).decode() for file in files]
    return {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [len(files), 1], "data": data}], **more}


def binary(array: NDArray[Any], datatype: str = "UINT8", **more: Any) -> dict[str, Any]:
    """Keyword arguments for `post` with pixels as binary data."""
    data = array.tobytes()
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "pixels", "datatype": datatype, "shape": array.shape, "parameters": parameters}
    text = json.dumps({"inputs": [tensor], **more}).encode()
    return {"content": text + data, "headers": {HEADER_LENGTH: str(len(text))}}


def outputs(response: httpx.Response) -> dict[str, dict[str, Any]]:
    """The outputs of a response in JSON, by name."""
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    return {output["name"]: output for output in response.json()["outputs"]}


def is_an_error(response: httpx.Response, status: int) -> str:
    """Assert that a response is a well-formed error, and give its message."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert set(response.json()) == {"error"}
    assert response.headers["X-Request-ID"]
    message: str = response.json()["error"]
    return message


@pytest.fixture(scope="module")
def predicted(running: Running) -> list[dict[str, Any]]:
    """The results of /predict for `batch(4)` as PNG files."""
    files = [("a.png", image_file(seed)) for seed in range(4)]
    results: list[dict[str, Any]] = running.upload(*files, params={"top_k": 10}).json()["results"]
    return results


def agrees(probabilities: NDArray[Any], predicted: list[dict[str, Any]]) -> None:
    """Assert that probabilities of each class are those of /predict."""
    expected = np.zeros((len(predicted), len(LABELS)))
    for row, result in zip(expected, predicted, strict=True):
        for ranked in result["top_k"]:
            row[ranked["index"]] = ranked["probability"]
    np.testing.assert_allclose(probabilities.reshape(expected.shape), expected, atol=1e-6)


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_describes_itself_without_a_redirect(running: Running, path: str) -> None:
    response = running.client.get(path)
    assert response.status_code == 200
    assert response.json()["name"] == "tenfold"
    assert response.json()["extensions"] == [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "statistics",
    ]


@pytest.mark.parametrize("version", ["", f"/versions/{VERSION}", f"/versions/{CARD.version}"])
def test_the_metadata_of_both_models(running: Running, version: str) -> None:
    scores = [{"name": name, "datatype": "FP32", "shape": [-1, 10]} for name in ("logits", "probabilities")]
    common = {"versions": [VERSION], "platform": "tenfold_fake"}
    assert running.client.get(f"/v2/models/{NAME}{version}").json() == {
        "name": NAME,
        **common,
        "inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
        "outputs": scores,
    }
    assert running.client.get(f"/v2/models/{IMAGE}{version}").json() == {
        "name": IMAGE,
        **common,
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
        "outputs": [*scores, {"name": "label", "datatype": "BYTES", "shape": [-1, 1]}],
    }


def test_the_configuration_has_what_tritons_clients_read(running: Running) -> None:
    config = running.client.get(f"/v2/models/{NAME}/config").json()
    assert config["max_batch_size"] == 32
    assert config["input"] == [
        {"name": "pixels", "data_type": "TYPE_UINT8", "format": "FORMAT_NHWC", "dims": [32, 32, 3]}
    ]
    assert [output["dims"] for output in config["output"]] == [[10], [10]]
    assert config["parameters"] == {"version": {"string_value": CARD.version}}
    config = running.client.get(f"/v2/models/{IMAGE}/versions/{VERSION}/config").json()
    assert config["input"] == [{"name": "image", "data_type": "TYPE_STRING", "format": "FORMAT_NONE", "dims": [1]}]


def test_the_largest_batch_is_the_setting_for_files() -> None:
    with serving(max_files=3) as service:
        assert service.client.get(f"/v2/models/{NAME}/config").json()["max_batch_size"] == 3
        assert service.client.post(INFER, json=pixels(batch(3))).status_code == 200
        for response in (
            service.client.post(INFER, json=pixels(batch(4))),
            service.client.post(INFER, **binary(batch(4))),
            service.client.post(INFER_IMAGE, json=images(*[image_file()] * 4)),
        ):
            assert is_an_error(response, 413) == "more than 3 images in one request: send them in several requests"


@pytest.mark.parametrize("datatype", ["UINT8", "FP32"])
@pytest.mark.parametrize("form", ["flat", "nested", "binary"])
def test_pixels_get_the_probabilities_of_predict(
    running: Running, predicted: list[dict[str, Any]], form: str, datatype: str
) -> None:
    array = batch(4).astype({"UINT8": np.uint8, "FP32": np.float32}[datatype])
    request: dict[str, Any] = {"json": pixels(array, datatype)} if form != "binary" else binary(array, datatype)
    if form == "nested":
        request["json"]["inputs"][0]["data"] = array.tolist()
    found = outputs(running.client.post(INFER, **request))
    assert list(found) == ["logits", "probabilities"]
    assert found["probabilities"]["shape"] == [4, 10]
    agrees(np.array(found["probabilities"]["data"]), predicted)
    logits = np.array(found["logits"]["data"]).reshape(4, 10)
    assert [LABELS[row.argmax()] for row in logits] == [result["top_k"][0]["label"] for result in predicted]


def test_images_get_the_probabilities_and_labels_of_predict(running: Running, predicted: list[dict[str, Any]]) -> None:
    found = outputs(running.client.post(INFER_IMAGE, json=images(*[image_file(seed) for seed in range(4)])))
    assert list(found) == ["logits", "probabilities", "label"]
    agrees(np.array(found["probabilities"]["data"]), predicted)
    assert found["label"]["datatype"] == "BYTES"
    assert found["label"]["shape"] == [4, 1]
    assert found["label"]["data"] == [result["top_k"][0]["label"] for result in predicted]


def test_an_image_with_several_views_has_the_mean_of_their_logits(running: Running) -> None:
    expected = running.post(photo()).json()["results"][0]
    assert expected["views"] == MAX_VIEWS
    found = outputs(running.client.post(INFER_IMAGE, json=images(photo())))
    prepared = preprocess(photo(), CARD.input, max_pixels=10**9, views=MAX_VIEWS)
    (prediction,) = fake_classifier(FakeEngine()).classify([prepared.pixels])
    mean = np.average(prediction.logits, axis=0, weights=[1, 2, 1, 1, 1])
    np.testing.assert_allclose(found["logits"]["data"], mean, rtol=1e-5, atol=1e-5)
    assert found["logits"]["shape"] == [1, 10]
    assert found["label"]["data"] == [expected["top_k"][0]["label"]]
    assert max(found["probabilities"]["data"]) == pytest.approx(expected["top_k"][0]["probability"], abs=1e-6)


def test_fp32_pixels_are_rounded(running: Running) -> None:
    array = batch().astype(np.float32)
    exact = outputs(running.client.post(INFER, **binary(array, "FP32")))
    for difference in (-0.4, 0.4):
        near = (array + np.float32(difference)).clip(0, 255)
        assert outputs(running.client.post(INFER, **binary(near, "FP32"))) == exact


@pytest.mark.parametrize("value", [-0.5, 255.5, 1e30, float("nan"), float("inf")])
def test_fp32_pixels_out_of_range_are_refused(running: Running, value: float) -> None:
    array = batch().astype(np.float32)
    array[0, 5, 6, 1] = value
    message = is_an_error(running.client.post(INFER, **binary(array, "FP32")), 400)
    assert message == "a pixel is not within 0 to 255: send the values before any normalisation"


def test_only_requested_outputs_are_returned_in_order(running: Running) -> None:
    request = images(image_file(), outputs=[{"name": "label"}, {"name": "probabilities"}])
    assert list(outputs(running.client.post(INFER_IMAGE, json=request))) == ["label", "probabilities"]


@pytest.mark.parametrize("name", ["logits", "probabilities"])
def test_a_classification_ranks_the_classes(running: Running, name: str) -> None:
    ranked = pixels(batch(2), outputs=[{"name": name, "parameters": {"classification": 3}}])
    found = outputs(running.client.post(INFER, json=ranked))[name]
    assert (found["datatype"], found["shape"]) == ("BYTES", [2, 3])
    values = np.array(outputs(running.client.post(INFER, json=pixels(batch(2))))[name]["data"]).reshape(2, 10)
    order = [(row, index) for row in range(2) for index in np.argsort(-values[row])[:3]]
    assert found["data"] == [f"{values[row, index]:.6f}:{index}:{LABELS[index]}" for row, index in order]


def test_a_classification_has_at_most_all_classes(running: Running) -> None:
    request = pixels(batch(), outputs=[{"name": "logits", "parameters": {"classification": 1000}}])
    assert outputs(running.client.post(INFER, json=request))["logits"]["shape"] == [1, 10]


def test_the_id_is_returned_or_made(running: Running) -> None:
    assert running.client.post(INFER, json=pixels(batch(), id="42")).json()["id"] == "42"
    response = running.client.post(INFER, json=pixels(batch()))
    assert response.json()["id"] == response.headers["X-Request-ID"]


def test_a_response_names_the_model_and_its_version(running: Running) -> None:
    for path, name in ((INFER, NAME), (f"/v2/models/{NAME}/versions/{VERSION}/infer", NAME)):
        response = running.client.post(path, json=pixels(batch())).json()
        assert (response["model_name"], response["model_version"]) == (name, VERSION)


def test_a_request_needs_no_content_type(running: Running) -> None:
    body = json.dumps(pixels(batch()))
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    connection.putrequest("POST", INFER)
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body.encode())
    assert connection.getresponse().status == 200
    connection.close()


def test_the_repository_index(running: Running) -> None:
    expected = [{"name": name, "version": VERSION, "state": "READY", "reason": ""} for name in (NAME, IMAGE)]
    for body in (b"", b"{}", b'{"ready": true}'):
        assert running.client.post("/v2/repository/index", content=body).json() == expected
    for body in (b"[]", b'{"ready": 1}', b"{"):
        is_an_error(running.client.post("/v2/repository/index", content=body), 400)
    is_an_error(running.client.post("/v2/repository/index", content=b" " * 1001), 413)


def test_the_list_of_models(running: Running) -> None:
    assert running.client.get("/v2/models").json() == {"models": [NAME, IMAGE]}


def test_a_raw_binary_request_is_one_image_for_all_outputs(running: Running) -> None:
    raw = {HEADER_LENGTH: "0", "Content-Type": "application/octet-stream"}
    for path, body, json_request in (
        (INFER, batch().tobytes(), pixels(batch())),
        (INFER_IMAGE, photo(), images(photo())),
    ):
        expected = outputs(running.client.post(path, json=json_request))
        for headers, content in ((raw, body), ({**raw, "Content-Encoding": "gzip"}, gzip.compress(body))):
            response = running.client.post(path, content=content, headers=headers)
            assert response.status_code == 200, response.text
            length = int(response.headers[HEADER_LENGTH])
            described, data = json.loads(response.content[:length]), response.content[length:]
            assert [output["name"] for output in described["outputs"]] == list(expected)
            for output in described["outputs"]:
                size = output["parameters"]["binary_data_size"]
                if output["datatype"] == "FP32":
                    values = np.frombuffer(data[:size], "<f4")
                    np.testing.assert_allclose(values, expected[output["name"]]["data"], rtol=1e-5, atol=1e-6)
                else:
                    assert data[4:size].decode() == expected[output["name"]]["data"][0]
                data = data[size:]
            assert not data


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        (INFER, batch().tobytes()[:-1], 400, "UINT8[1, 32, 32, 3] has 3072 bytes of data, not 3071"),
        (INFER, batch(2).tobytes(), 400, "UINT8[1, 32, 32, 3] has 3072 bytes of data, not 6144"),
        (INFER, b"", 400, "not 0"),
        (INFER_IMAGE, b"cat", 415, "this is not an image"),
        (INFER_IMAGE, b"", 415, "this is not an image"),
    ],
)
def test_a_raw_binary_request_that_is_no_image_is_refused(
    running: Running, path: str, body: bytes, status: int, says: str
) -> None:
    assert says in is_an_error(running.client.post(path, content=body, headers={HEADER_LENGTH: "0"}), status)


@pytest.mark.parametrize(
    "encoded",
    [
        base64.encodebytes(image_file(1)).decode(),
        base64.urlsafe_b64encode(image_file(1)).decode().rstrip("="),
        f"data:image/png;base64,{base64.b64encode(image_file(1)).decode()}",
    ],
    ids=["line breaks", "URL-safe without padding", "data URL"],
)
def test_an_image_in_json_is_base64_of_any_kind(running: Running, encoded: str) -> None:
    request = images(image_file(1))
    expected = outputs(running.client.post(INFER_IMAGE, json=request))
    request["inputs"][0]["data"] = [encoded]
    with_mark = b"\xef\xbb\xbf" + json.dumps(request).encode()
    assert outputs(running.client.post(INFER_IMAGE, content=with_mark)) == expected
    request["inputs"][0].update(shape=[2, 1], data=[encoded, "not base64!"])
    message = is_an_error(running.client.post(INFER_IMAGE, json=request), 400)
    assert message == "element 1 of the input is not in base64: encode it, or send binary data"


def test_statistics_count_the_images_requests_and_batches() -> None:
    with serving() as service:
        path = f"/v2/models/{NAME}/versions/{VERSION}/stats"
        (before,) = service.client.get(path).json()["model_stats"]
        assert (before["inference_count"], before["last_inference"]) == (0, 0)
        service.client.post(INFER, json=pixels(batch(3)))
        service.client.post(INFER_IMAGE, json=images(image_file()))
        service.client.post(INFER, json=pixels(batch(3), "FP64"))
        service.post(image_file())
        (found,) = service.client.get(path).json()["model_stats"]
        assert (found["name"], found["version"]) == (NAME, VERSION)
        assert (found["inference_count"], found["execution_count"]) == (5, len(service.engine.batches))
        assert found["last_inference"] > 1_700_000_000_000
        counts = {name: total["count"] for name, total in found["inference_stats"].items()}
        assert counts["success"] == 3
        assert counts["fail"] == 1
        stages = ("queue", "compute_input", "compute_infer", "compute_output")
        assert [counts[name] for name in stages] == [5, 5, 5, 5], "perf_analyzer requires equal counts"
        measured = {name for name, total in found["inference_stats"].items() if total["ns"] > 0}
        assert measured == {"success", "fail", "queue", "compute_input", "compute_infer"}
        everything = service.client.get("/v2/models/stats").json()["model_stats"]
        assert [entry["name"] for entry in everything] == [NAME, IMAGE]
        assert {entry["inference_count"] for entry in everything} == {5}


def test_requests_are_counted_in_the_metrics(running: Running) -> None:
    running.client.post(INFER, json=pixels(batch(), "FP64"))
    running.client.post(INFER, json=pixels(batch()))
    found = running.client.get("/metrics").text
    route = "/v2/models/{model_name}/infer"
    assert f'tenfold_requests_total{{model="{NAME}",route="{route}",status="200"}}' in found
    assert f'tenfold_rejections_total{{model="{NAME}",reason="invalid-inference"}}' in found
    timing = running.client.post(INFER, json=pixels(batch())).headers["Server-Timing"]
    assert "queue;dur=" in timing
    assert "inference;dur=" in timing


def test_one_invalid_image_fails_the_request(running: Running) -> None:
    message = is_an_error(running.client.post(INFER_IMAGE, json=images(image_file(), b"cat")), 415)
    assert message.startswith("element 1 of the input: this is not an image")
    assert is_an_error(running.client.post(INFER_IMAGE, json=images(b"cat")), 415).startswith("this is not an image")
    is_an_error(running.client.post(INFER_IMAGE, json=images(image_file()[:-30])), 422)
    is_an_error(running.client.post(INFER_IMAGE, json=images(b"")), 415)


@pytest.mark.parametrize(
    ("path", "request_json", "says"),
    [
        (INFER, pixels(batch(), "FP64"), "pixels is of type 'FP64': send UINT8 or FP32"),
        (INFER, pixels(batch(), "BYTES"), "pixels is of type 'BYTES': send UINT8 or FP32"),
        (INFER, images(image_file()), "has no input 'image': name it pixels"),
        (INFER_IMAGE, pixels(batch()), "has no input 'pixels': name it image"),
        (INFER, pixels(batch()[0]), "send [N, 32, 32, 3], N from 1 to 32"),
        (INFER, pixels(batch()[:, :16]), "send [N, 32, 32, 3], N from 1 to 32"),
        (INFER, pixels(np.zeros((0, 32, 32, 3), np.uint8)), "send [N, 32, 32, 3], N from 1 to 32"),
        (INFER, pixels(batch(), outputs=[{"name": "label"}]), "has no output 'label': choose from logits, prob"),
        (
            INFER_IMAGE,
            images(image_file(), outputs=[{"name": "label", "parameters": {"classification": 1}}]),
            "label has no classification",
        ),
    ],
)
def test_tensors_that_are_not_those_of_the_model_are_refused(
    running: Running, path: str, request_json: Mapping[str, Any], says: str
) -> None:
    seen = running.engine.views
    assert says in is_an_error(running.client.post(path, json=request_json), 400)
    assert running.engine.views == seen, "nothing was computed"


@pytest.mark.parametrize("path", ["/v2/models/dog", "/v2/models/dog/ready", "/v2/models/dog-image/config"])
def test_an_unknown_model_is_an_error(running: Running, path: str) -> None:
    assert f"choose one of {NAME}, {IMAGE}" in is_an_error(running.client.get(path), 404)


@pytest.mark.parametrize("suffix", ["", "/ready", "/config", "/stats"])
def test_an_unknown_version_is_an_error(running: Running, suffix: str) -> None:
    message = is_an_error(running.client.get(f"/v2/models/{NAME}/versions/7{suffix}"), 404)
    assert message == f"{NAME} has no version '7': choose {VERSION}, or name none"
    is_an_error(running.client.post(f"/v2/models/{NAME}/versions/7/infer", json=pixels(batch())), 404)


def test_errors_of_the_framework_have_the_format_of_the_protocol(running: Running) -> None:
    is_an_error(running.client.get("/v2/nowhere"), 404)
    is_an_error(running.client.post("/v2/repository/models/a/load"), 404)
    for method, path in (("GET", INFER), ("DELETE", "/v2"), ("POST", "/v2/health/live")):
        response = running.client.request(method, path)
        is_an_error(response, 405)
        assert response.headers["Allow"]
    assert running.client.get("/v2x").headers["Content-Type"] == "application/problem+json"


def test_an_internal_error_has_the_format_of_the_protocol() -> None:
    with serving() as service:
        service.engine.failure = RuntimeError("secret")
        response = service.client.post(INFER, json=pixels(batch()))
        assert response.headers["X-Request-ID"] in is_an_error(response, 500)
        assert "secret" not in response.text
        service.engine.failure = None
        assert service.client.post(INFER, json=pixels(batch())).status_code == 200


def test_the_limits_and_deadlines_are_those_of_predict() -> None:
    with serving(queue_size=4, max_files=4, max_body_bytes=20_000) as service:
        service.engine.block()
        holding = service.in_background(lambda: service.client.post(INFER, **binary(batch(4))))
        service.wait_admitted(4)
        refused = service.client.post(INFER, **binary(batch()))
        assert "4 images" in is_an_error(refused, 503)
        assert int(refused.headers["Retry-After"]) >= 1
        assert service.post(image_file()).status_code == 503
        service.engine.release()
        assert holding.result().status_code == 200
        is_an_error(service.client.post(INFER, content=bytes(20_001)), 413)
        service.engine.block()
        request = binary(batch())
        request["headers"]["X-Request-Timeout"] = "0.2"
        is_an_error(service.client.post(INFER, **request), 504)
        service.engine.release()
        request["headers"]["X-Request-Timeout"] = "soon"
        is_an_error(service.client.post(INFER, **request), 422)
        service.wait_admitted(0)


def test_the_json_of_a_request_takes_no_more_memory_than_images_may() -> None:
    with serving(max_decode_bytes=300_000) as service:
        assert service.client.post(INFER, **binary(batch())).status_code == 200
        assert "send tensors as binary data" in is_an_error(service.client.post(INFER, json=pixels(batch(2))), 413)


def test_large_requests_are_parsed_and_answered_in_threads(running: Running) -> None:
    array = batch(32)
    found = outputs(running.client.post(INFER, json=pixels(array)))
    expected = outputs(running.client.post(INFER, **binary(array)))
    assert found == expected


@pytest.fixture(scope="module")
def loading() -> Iterator[Running]:
    """A service whose model is not loaded."""
    loaded = threading.Event()

    def load() -> Classifier:
        loaded.wait(60)
        return fake_classifier(FakeEngine())

    with serving(load=load, wait_ready=False) as service:
        try:
            yield service
        finally:
            loaded.set()


def test_a_model_that_is_loading_is_not_ready(loading: Running) -> None:
    assert loading.client.get("/v2/health/live").json() == {"live": True}
    for path in ("/v2/health/ready", f"/v2/models/{NAME}/ready", f"/v2/models/{IMAGE}/ready", f"/v2/models/{NAME}"):
        response = loading.client.get(path)
        is_an_error(response, 503)
        assert response.headers["Retry-After"]
    is_an_error(loading.client.post(INFER, json=pixels(batch())), 503)
    index = loading.client.post("/v2/repository/index").json()
    assert [(entry["name"], entry["state"], entry["version"]) for entry in index] == [
        (NAME, "LOADING", ""),
        (IMAGE, "LOADING", ""),
    ]
    assert index[0]["reason"]
    assert loading.client.post("/v2/repository/index", json={"ready": True}).json() == []
    assert loading.client.get("/v2/models/stats").json() == {"model_stats": []}


def test_probes_of_a_service_that_is_ready(running: Running) -> None:
    assert running.client.get("/v2/health/live").json() == {"live": True}
    assert running.client.get("/v2/health/ready").json() == {"ready": True}
    for path in (f"/v2/models/{NAME}/ready", f"/v2/models/{NAME}/versions/{VERSION}/ready"):
        assert running.client.get(path).json() == {"name": NAME, "ready": True}
        assert running.client.head(path).status_code == 200


def test_a_model_whose_engine_fails_is_not_ready() -> None:
    with serving() as service:
        service.engine.failure = RuntimeError("broken")
        for _ in range(3):
            service.client.post(INFER, json=pixels(batch()))
        eventually(lambda: service.service.state == "failed", "the service gives up")
        for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{NAME}/ready"):
            is_an_error(service.client.get(path), 503)
        (entry, _) = service.client.post("/v2/repository/index").json()
        assert entry["state"] == "UNAVAILABLE"
        assert entry["reason"]


def test_several_models_are_served_by_name() -> None:
    other = FakeEngine()
    with serving(others={"other": lambda: fake_classifier(other, "other")}) as service:
        index = service.client.post("/v2/repository/index").json()
        assert [entry["name"] for entry in index] == [NAME, IMAGE, "other", "other-image"]
        assert service.client.post("/v2/models/other/infer", json=pixels(batch())).json()["model_name"] == "other"
        assert (other.views, service.engine.views) == (1, 0)


def test_a_bundle_whose_name_ends_like_that_of_an_image_model_comes_first() -> None:
    with serving(others={IMAGE: lambda: fake_classifier(FakeEngine(), IMAGE)}) as service:
        index = service.client.post("/v2/repository/index").json()
        assert [entry["name"] for entry in index] == [NAME, IMAGE, f"{IMAGE}-image"]
        assert service.client.get(f"/v2/models/{IMAGE}").json()["inputs"][0]["name"] == "pixels"
        assert service.client.post(INFER_IMAGE, json=pixels(batch())).status_code == 200


def test_an_api_key_is_needed_except_for_probes() -> None:
    with serving(api_keys=("key",)) as service:
        for path in ("/v2/health/live", "/v2/health/ready", f"/v2/models/{NAME}/ready"):
            assert service.client.get(path).status_code == 200
        for path in ("/v2", "/v2/", f"/v2/models/{NAME}", f"/v2/models/{NAME}/config", "/v2/models/stats"):
            is_an_error(service.client.get(path), 401)
            assert service.client.get(path, headers={"Authorization": "Bearer key"}).status_code == 200
        is_an_error(service.client.post("/v2/repository/index"), 401)
        is_an_error(service.client.post(INFER, json=pixels(batch())), 401)
        assert service.client.post(INFER, json=pixels(batch()), headers={"X-API-Key": "key"}).status_code == 200


def test_the_protocol_can_be_turned_off() -> None:
    with serving(open_inference=False) as service:
        for path in ("/v2", "/v2/health/live", f"/v2/models/{NAME}"):
            response = service.client.get(path)
            assert response.status_code == 404
            assert response.headers["Content-Type"] == "application/problem+json"
        assert service.client.post(INFER, json=pixels(batch())).status_code == 404
        assert "/v2" not in service.client.get("/openapi.json").json()["paths"]
