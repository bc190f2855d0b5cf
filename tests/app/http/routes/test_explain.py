import base64
import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model import MAX_VIEWS, Prediction, PreprocessedImage, overlay, preprocess
from model.engines.base import Outputs
from tests.app.fakes import CARD, HEAD, LABELS, FakeEngine, fake_classifier, image_file, photo
from tests.app.running import Running, eventually, serving
from tests.conftest import maps_of


def explain(running: Running, data: bytes, **params: Any) -> dict[str, Any]:
    """The response in JSON."""
    response = running.client.post("/explain", content=data, params=params)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    found: dict[str, Any] = response.json()
    return found


def directly(data: bytes, views: int) -> tuple[PreprocessedImage, Prediction]:
    """What preprocess() and the classifier say when they are called directly."""
    prepared = preprocess(data, CARD.input, max_pixels=10**9, views=views)
    (prediction,) = fake_classifier(FakeEngine()).classify([prepared.pixels])
    return prepared, prediction


def drawn(running: Running, data: bytes, **params: Any) -> NDArray[np.uint8]:
    """The response as a PNG, decoded."""
    response = running.client.post("/explain", content=data, params={"format": "png", **params})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "image/png"
    image = Image.open(io.BytesIO(response.content))
    assert (image.format, image.mode) == ("PNG", "RGB")
    return np.asarray(image)


def decoded(url: str) -> NDArray[np.uint8]:
    """The pixels of a data: URL."""
    head, _, rest = url.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(rest))))


def test_an_explanation_has_the_documented_fields(running: Running) -> None:
    prepared, prediction = directly(image_file(1), 1)
    (first,) = prediction.top_k(1)
    response = running.client.post("/explain", files={"file": ("a.png", image_file(1))}, params={"top_k": 3})
    found = response.json()
    assert set(found) == {"model", "result", "label", "index", "probability", "method", "views"}
    assert found["model"] == {"name": "fake-net", "version": CARD.version}
    (expected,) = running.upload(("a.png", image_file(1)), params={"top_k": 3}).json()["results"]
    assert found["result"] == expected, "the same as /predict says"
    assert (found["label"], found["index"]) == (first.label, first.index)
    assert found["probability"] == found["result"]["top_k"][0]["probability"]
    assert found["method"].startswith("class-activation map (Zhou et al. 2016)")
    (view,) = found["views"]
    assert set(view) == {"box", "input", "map", "weight", "maps"}
    assert (view["weight"], view["maps"]) == (1, None)
    assert view["box"] == [0, 0, 32, 32]
    np.testing.assert_array_equal(decoded(view["input"]), prepared.pixels[0])
    np.testing.assert_allclose(view["map"], maps_of(prediction)[0, first.index], atol=1e-6)


@pytest.mark.parametrize("views", range(1, MAX_VIEWS + 1))
def test_every_view_has_its_box_its_pixels_and_its_map(running: Running, views: int) -> None:
    prepared, prediction = directly(photo(), views)
    found = explain(running, photo(), views=views, label="frog")
    assert found["result"]["views"] == len(found["views"]) == views
    for number, view in enumerate(found["views"]):
        assert view["box"] == pytest.approx(prepared.boxes[number], abs=1e-3)
        np.testing.assert_array_equal(decoded(view["input"]), prepared.pixels[number])
        np.testing.assert_allclose(view["map"], maps_of(prediction)[number, 6], atol=1e-6)
        quarters = prepared.pixels[number].reshape(2, 16, 2, 16, 3).mean(axis=(1, 3)) / 255
        assert np.sum(view["map"]) == pytest.approx(quarters.ravel() @ HEAD[:, 6], abs=1e-3), "the logit"


@pytest.mark.parametrize("views", [1, 2, MAX_VIEWS])
def test_the_maps_of_the_most_probable_classes_on_request(running: Running, views: int) -> None:
    prediction = directly(photo(), views)[1]
    found = explain(running, photo(), views=views, maps=4, top_k=4)
    labels = [each["label"] for each in found["result"]["top_k"]]
    for number, view in enumerate(found["views"]):
        assert list(view["maps"]) == labels
        assert view["maps"][labels[0]] == view["map"]
        for label in labels:
            expected = maps_of(prediction)[number, LABELS.index(label)]
            np.testing.assert_allclose(view["maps"][label], expected, atol=1e-6)
    weights = [view["weight"] for view in found["views"]]
    assert sum(weights) == pytest.approx(1, abs=1e-5)
    assert max(weights) == weights[0 if views < 3 else 1]


def test_the_default_number_of_views_is_a_setting() -> None:
    with serving(views=3) as service:
        assert len(explain(service, photo())["views"]) == 3
        assert len(explain(service, photo(), views=1)["views"]) == 1
        assert service.engine.batches == [2, 1, 1], "no forward pass for the maps"


@pytest.mark.parametrize("label", [*LABELS, "FROG", "Truck"])
def test_any_class_can_be_explained(running: Running, label: str) -> None:
    found = explain(running, image_file(2), label=label, top_k=10)
    index = LABELS.index(label.lower())
    assert (found["label"], found["index"]) == (LABELS[index], index)
    (ranked,) = (ranked for ranked in found["result"]["top_k"] if ranked["index"] == index)
    assert found["probability"] == ranked["probability"]
    np.testing.assert_allclose(found["views"][0]["map"], maps_of(directly(image_file(2), 1)[1])[0, index], atol=1e-6)


@pytest.mark.parametrize("label", ["cats", "3", "", " cat", "猫"])
def test_an_unknown_label_is_refused_with_the_known_ones(running: Running, label: str) -> None:
    seen = running.engine.views
    response = running.client.post("/explain", content=image_file(), params={"label": label})
    assert response.status_code == 422
    assert response.json()["type"] == "urn:tenfold:unknown-label"
    assert ", ".join(LABELS) in response.json()["detail"]
    assert running.engine.views == seen


def test_min_confidence_works_as_for_predict(running: Running) -> None:
    seed = next(seed for seed in range(12) if directly(image_file(seed), 1)[1].accepted())
    assert explain(running, image_file(seed))["result"]["accepted"] is True
    assert explain(running, image_file(seed), min_confidence=1)["result"]["accepted"] is False


@pytest.mark.parametrize("views", [1, 3])
def test_the_png_is_the_image_with_the_heat_map(running: Running, views: int) -> None:
    prepared, prediction = directly(photo(), views)
    for label, index in (("frog", 6), ("ship", 8)):
        maps = maps_of(prediction)
        first = int(prediction.probabilities.argmax())
        expected = overlay(photo(), prepared, maps[:, index], scale=maps[:, first], max_pixels=10**9)
        np.testing.assert_array_equal(drawn(running, photo(), views=views, label=label), expected)
    assert expected.shape == (150, 200, 3)


@pytest.mark.parametrize(
    ("size", "orientation", "shape"),
    [((60, 40), 1, (40, 60)), ((60, 40), 6, (60, 40)), ((3000, 1500), 1, (512, 1024)), ((3000, 1500), 6, (1024, 512))],
)
def test_the_png_is_upright_and_has_a_bounded_size(
    running: Running, size: tuple[int, int], orientation: int, shape: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = image_file(9, size=size, kind="JPEG", exif=exif)
    assert drawn(running, data).shape == (*shape, 3)


class GradientEngine(FakeEngine):
    """Has no maps, but computes gradients: the map of a class is its number."""

    def __init__(self) -> None:
        super().__init__()
        self.has_maps = False

    def grad_cam(self, pixels: NDArray[np.uint8], index: int) -> NDArray[np.float32] | None:
        return np.full((len(pixels), 2, 2), index, np.float32) if index else None


def test_a_network_without_maps_is_explained_by_grad_cam() -> None:
    with serving(GradientEngine()) as service:
        found = explain(service, photo(), views=2, label="frog")
        assert found["method"].startswith("Grad-CAM (Selvaraju et al. 2017)")
        assert [view["map"] for view in found["views"]] == [[[6.0, 6.0], [6.0, 6.0]]] * 2
        assert service.post(photo(), params={"views": 2}).json()["results"] == [found["result"]]
        assert drawn(service, photo(), label="frog").shape == (150, 200, 3)


class ConfidentEngine(GradientEngine):
    """Its logits are so large that two views are enough."""

    def run(self, pixels: NDArray[np.uint8]) -> Outputs:
        logits, features, maps = super().run(pixels)
        return Outputs(100 * logits, features, maps)


@pytest.mark.parametrize("has_maps", [True, False])
def test_only_the_views_that_were_run_are_explained(has_maps: bool) -> None:
    engine = ConfidentEngine()
    engine.has_maps = has_maps
    with serving(engine) as service:
        found = explain(service, photo(), views=5, label="frog")
        assert found["result"]["views"] == len(found["views"]) == 2
        assert drawn(service, photo(), views=5, label="frog").shape == (150, 200, 3)
        assert engine.batches == [2, 2]


def test_what_cannot_be_explained_is_a_problem_that_says_why() -> None:
    with serving(GradientEngine()) as service:
        response = service.client.post("/explain", content=photo(), params={"label": "airplane"})
        assert response.status_code == 501
        assert "the last features of resnet18 are not places in the image" in response.json()["detail"]
    with serving() as service:
        service.engine.has_maps = False
        response = service.client.post("/explain", content=photo())
        assert response.status_code == 501
        assert response.json()["type"] == "urn:tenfold:not-explainable"
        assert "the engine fake computes no gradients: set the engine to torch" in response.json()["detail"]


def test_server_timing_has_the_drawing(running: Running) -> None:
    for kind in ("json", "png"):
        response = running.client.post("/explain", content=image_file(), params={"format": kind})
        names = [entry.split(";")[0] for entry in response.headers["Server-Timing"].split(", ")]
        assert names == ["decode", "queue", "inference", "draw", "total"]
        assert response.headers["X-Request-ID"]


def test_explained_images_are_counted_in_the_metrics() -> None:
    with serving() as service:
        explain(service, image_file(1))
        drawn(service, image_file(1))
        assert service.client.post("/explain", content=b"cat").status_code == 415
        text = service.client.get("/metrics").text
    assert 'tenfold_pictures_total{model="fake-net",outcome="answered"} 2.0' in text
    assert 'tenfold_pictures_total{model="fake-net",outcome="unsupported-picture"} 1.0' in text
    assert 'tenfold_requests_total{model="fake-net",route="/explain",status="200"} 2.0' in text


def test_an_image_whose_client_disconnects_is_not_run() -> None:
    body = image_file(2)
    head = f"POST /explain HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving() as service:
        service.engine.block()
        first = service.in_background(lambda: service.post(image_file(1)))
        service.engine.wait_entered()
        with service.connect() as connection:
            connection.sendall(head.encode() + body)
            service.wait_admitted(2)
        service.wait_admitted(1)
        service.engine.release()
        assert first.result().status_code == 200
        service.wait_admitted(0)
        assert service.engine.views == 1


def test_explained_and_classified_images_share_a_batch() -> None:
    with serving() as service:
        service.engine.block()
        first = service.in_background(lambda: service.post(image_file(1)))
        service.engine.wait_entered()
        others = [
            service.in_background(lambda: service.post(image_file(2))),
            service.in_background(lambda: service.client.post("/explain", content=image_file(3))),
        ]
        service.wait_admitted(3)
        eventually(lambda: service.core.models.images.used[CARD.name] == 3, "all wait")
        service.engine.release()
        assert [other.result().status_code for other in (first, *others)] == [200, 200, 200]
        assert service.engine.batches in ([1, 2], [1, 1, 1])
