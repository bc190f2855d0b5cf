import base64
import io
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model import MAX_VIEWS, Prediction, image, preprocess
from model.engines.base import Outputs
from tests.app.fakes import CARD, LABELS, FakeEngine, fake_classifier, image_file, photo
from tests.app.running import ROOT, Running, eventually, serving


def predicted(data: bytes, views: int = 1) -> Prediction:
    """What the classifier says of an image when it is called directly."""
    pixels = preprocess(data, CARD.input, max_pixels=10**9, views=views).pixels
    (prediction,) = fake_classifier(FakeEngine()).classify([pixels])
    return prediction


def ranking(prediction: Prediction, k: int) -> list[dict[str, Any]]:
    """A prediction as in the response."""
    return [
        {"label": one.label, "index": one.index, "probability": pytest.approx(one.probability, rel=1e-4, abs=1e-6)}
        for one in prediction.top_k(k)
    ]


def expected_ranking(data: bytes, k: int, views: int = 1) -> list[dict[str, Any]]:
    """The ranking that the classifier gives when it is called directly."""
    return ranking(predicted(data, views), k)


def confident(seeds: Iterable[int]) -> int:
    """The first of these seeds whose image looks like the classes."""
    return next(seed for seed in seeds if predicted(image_file(seed)).accepted())


def test_the_path_may_end_in_a_slash(running: Running) -> None:
    assert running.client.post("/predict/", content=image_file()).status_code == 200


def test_an_image_in_json_has_the_result_of_the_file(running: Running) -> None:
    body = {"image": base64.b64encode(image_file(1)).decode()}
    assert running.client.post("/predict", json=body).json() == running.post(image_file(1)).json()


def test_the_result_for_an_image_has_the_documented_fields(running: Running) -> None:
    response = running.upload(("cat.png", image_file(1)), params={"top_k": 2})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.json() == {
        "model": {"name": "fake-net", "version": CARD.version},
        "results": [
            {
                "filename": "cat.png",
                "width": 32,
                "height": 32,
                "top_k": expected_ranking(image_file(1), 2),
                "in_distribution": pytest.approx(predicted(image_file(1)).in_distribution, abs=1e-5),
                "verdict": predicted(image_file(1)).verdict(),
                "accepted": False,
                "views": 1,
                "warnings": [],
            }
        ],
    }


def test_results_are_in_the_order_of_the_images(running: Running) -> None:
    images = [image_file(seed) for seed in range(9)]
    response = running.upload(*((f"{seed}.png", data) for seed, data in enumerate(images)))
    results = response.json()["results"]
    assert [result["filename"] for result in results] == [f"{seed}.png" for seed in range(9)]
    assert [result["top_k"] for result in results] == [expected_ranking(data, 5) for data in images]


def test_a_bad_image_among_several_has_its_own_problem(running: Running) -> None:
    response = running.upload(
        ("good.png", image_file(1)), ("torn.png", image_file(2)[:-40]), ("text.png", b"cat"), ("b.png", image_file(3))
    )
    assert response.status_code == 200
    good, torn, text, other = response.json()["results"]
    assert good["top_k"] == expected_ranking(image_file(1), 5)
    assert other["top_k"] == expected_ranking(image_file(3), 5)
    for result, name, status in ((torn, "torn.png", 422), (text, "text.png", 415)):
        assert set(result) == {"filename", "problem"}
        assert result["filename"] == name
        assert set(result["problem"]) == {"type", "title", "status", "detail", "instance"}
        assert result["problem"]["status"] == status
        assert result["problem"]["instance"] == response.headers["X-Request-ID"]


def test_a_request_with_only_bad_images_has_a_problem_for_each(running: Running) -> None:
    response = running.upload(("a", b"cat"), ("b", b"dog"))
    assert response.status_code == 200
    assert [result["problem"]["status"] for result in response.json()["results"]] == [415, 415]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "image/png"},
        {"Content-Type": "application/octet-stream"},
        {"Content-Type": "IMAGE/PNG; q=1"},
        {},
    ],
    ids=["image/png", "octet-stream", "capitals and a parameter", "none"],
)
def test_a_raw_body_is_one_image_without_a_filename(running: Running, headers: dict[str, str]) -> None:
    (result,) = running.post(image_file(4), headers=headers).json()["results"]
    assert result["filename"] is None
    assert result["top_k"] == expected_ranking(image_file(4), 5)


def test_the_content_type_of_an_image_does_not_matter(running: Running) -> None:
    (result,) = running.post(image_file(5), headers={"Content-Type": "image/jpeg"}).json()["results"]
    assert result["top_k"] == expected_ranking(image_file(5), 5)


def test_a_heic_photo_is_classified(running: Running) -> None:
    data = (ROOT / "tests" / "model" / "files" / "cat.heic").read_bytes()
    (result,) = running.post(data).json()["results"]
    assert (result["width"], result["height"]) == (160, 106)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_common_format_is_accepted(running: Running, kind: str) -> None:
    data = image_file(6, size=(50, 40), kind=kind)
    (result,) = running.post(data).json()["results"]
    assert (result["width"], result["height"]) == (50, 40)
    assert result["top_k"] == expected_ranking(data, 5)


@pytest.mark.parametrize("k", range(1, 11))
def test_top_k_is_the_number_of_classes_returned(running: Running, k: int) -> None:
    (result,) = running.post(image_file(7), params={"top_k": k}).json()["results"]
    assert len(result["top_k"]) == k


def test_five_classes_are_returned_by_default(running: Running) -> None:
    (result,) = running.post(image_file(7)).json()["results"]
    assert len(result["top_k"]) == 5


def test_the_ranking_is_sorted_and_its_probabilities_sum_to_one(running: Running) -> None:
    (result,) = running.post(image_file(8), params={"top_k": 10}).json()["results"]
    probabilities = [ranked["probability"] for ranked in result["top_k"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert {ranked["label"] for ranked in result["top_k"]} == set(LABELS)
    assert all(LABELS[ranked["index"]] == ranked["label"] for ranked in result["top_k"])


def test_width_and_height_are_those_after_exif_orientation(running: Running) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = image_file(9, size=(60, 40), kind="JPEG", exif=exif)
    (result,) = running.post(data).json()["results"]
    assert (result["width"], result["height"]) == (40, 60)


def test_a_small_image_has_a_warning(running: Running) -> None:
    (result,) = running.post(image_file(10, size=(8, 8))).json()["results"]
    assert result["warnings"] == ["upscaled from 8x8"]
    assert result["top_k"]


def test_the_requested_views_are_run() -> None:
    with serving() as service:
        (result,) = service.post(photo(), params={"views": 3}).json()["results"]
        assert service.engine.batches == [2, 1]
    assert result["views"] == 3
    views = preprocess(photo(), CARD.input, max_pixels=10**9, views=3).pixels
    alone = fake_classifier(FakeEngine()).classify([view[None] for view in views])
    mean = np.exp(np.average([np.log(prediction.probabilities) for prediction in alone], axis=0, weights=[1, 2, 1]))
    mean /= mean.sum()
    assert {ranked["index"]: ranked["probability"] for ranked in result["top_k"]} == {
        index: pytest.approx(mean[index], abs=1e-5) for index in np.argsort(-mean)[:5]
    }
    assert result["top_k"] != expected_ranking(photo(), 5), "the other views count"
    assert result["in_distribution"] == pytest.approx(predicted(photo(), 3).in_distribution, abs=1e-5)


@pytest.mark.parametrize("views", range(1, MAX_VIEWS + 1))
def test_every_number_of_views_is_served(running: Running, views: int) -> None:
    (result,) = running.post(photo(1), params={"views": views}).json()["results"]
    assert result["views"] == views
    assert result["top_k"] == expected_ranking(photo(1), 5, views)


def test_a_small_image_always_has_one_view() -> None:
    with serving() as service:
        (result,) = service.post(image_file(1), params={"views": MAX_VIEWS}).json()["results"]
        assert service.engine.batches == [1]
    assert result["views"] == 1
    assert result["top_k"] == expected_ranking(image_file(1), 5)


def test_one_view_is_the_plain_test_transform() -> None:
    pixels = image.test_transform(Image.open(io.BytesIO(photo(2))), CARD.input)
    (plain,) = fake_classifier(FakeEngine()).classify([pixels[None]])
    with serving(views=3) as service:
        (result,) = service.post(photo(2), params={"views": 1, "top_k": 10}).json()["results"]
    assert result["views"] == 1
    assert result["top_k"] == ranking(plain, 10)
    assert result["in_distribution"] == pytest.approx(plain.in_distribution, abs=1e-5)


def test_the_default_number_of_views_is_a_setting() -> None:
    with serving(views=4) as service:
        for params, views in (({}, 4), ({"views": 2}, 2), ({"views": 1}, 1), ({"views": MAX_VIEWS}, MAX_VIEWS)):
            (result,) = service.post(photo(), params=params).json()["results"]
            assert result["views"] == views
            assert result["top_k"] == expected_ranking(photo(), 5, views)
        assert service.engine.batches == [2, 2, 2, 1, 2, MAX_VIEWS - 2]


def test_large_and_small_images_of_a_request_get_their_own_results(running: Running) -> None:
    images = [photo(3), image_file(4), photo(5, size=(63, 90)), image_file(6), photo(7, size=(64, 90))]
    response = running.upload(*((str(number), data) for number, data in enumerate(images)), params={"views": 3})
    results = response.json()["results"]
    assert [result["views"] for result in results] == [3, 1, 1, 1, 3]
    assert [result["top_k"] for result in results] == [expected_ranking(data, 5, 3) for data in images]


def test_an_image_with_more_views_than_a_batch_is_classified() -> None:
    with serving(max_batch=2) as service:
        (result,) = service.post(photo(), params={"views": 4}).json()["results"]
        assert service.engine.batches == [2, 2]
    assert result["top_k"] == expected_ranking(photo(), 5, 4)


def test_an_image_below_the_thresholds_of_the_card_is_ranked_and_not_accepted(running: Running) -> None:
    seeds = range(30)
    response = running.upload(*((str(seed), image_file(seed)) for seed in seeds))
    results = response.json()["results"]
    thresholds = CARD.out_of_distribution.thresholds
    assert {result["verdict"] for result in results} == {"accepted", "uncertain", "other"}
    for seed, result in zip(seeds, results, strict=True):
        assert result["in_distribution"] == pytest.approx(predicted(image_file(seed)).in_distribution, abs=1e-5)
        assert result["accepted"] is (result["verdict"] == "accepted")
        assert (result["verdict"] == "accepted") is (result["in_distribution"] >= thresholds.accepted)
        assert (result["verdict"] == "other") is (result["in_distribution"] < thresholds.uncertain)
        assert result["top_k"] == expected_ranking(image_file(seed), 5)


def test_an_image_below_min_confidence_is_ranked_and_not_accepted(running: Running) -> None:
    seed = confident(range(12))
    confidence = float(predicted(image_file(seed)).probabilities.max())
    for least, accepted in ((0, True), (confidence - 0.01, True), (confidence + 0.01, False), (1, False)):
        (result,) = running.post(image_file(seed), params={"min_confidence": least}).json()["results"]
        assert result["accepted"] is accepted, least
        assert result["verdict"] == ("accepted" if accepted else "uncertain"), least
        assert result["top_k"] == expected_ranking(image_file(seed), 5)


def test_confidence_does_not_compensate_for_a_low_in_distribution(running: Running) -> None:
    seed = next(seed for seed in range(12) if not predicted(image_file(seed)).accepted())
    (result,) = running.post(image_file(seed), params={"min_confidence": 0}).json()["results"]
    assert result["accepted"] is False


def test_the_default_min_confidence_is_a_setting() -> None:
    seed = confident(range(12))
    confidence = float(predicted(image_file(seed)).probabilities.max())
    for setting, accepted in ((confidence - 0.01, True), (confidence + 0.01, False)):
        with serving(min_confidence=setting) as service:
            for params, expected in (({}, accepted), ({"min_confidence": 0}, True), ({"min_confidence": 1}, False)):
                (result,) = service.post(image_file(seed), params=params).json()["results"]
                assert result["accepted"] is expected, (setting, params)
                assert result["top_k"] == expected_ranking(image_file(seed), 5)


@pytest.mark.parametrize(
    "filename",
    ["кошка 猫 🐈.png", "a;b=c, d.png", "it's.png", "../../etc/passwd", "x" * 300, "%41%2f.png"],
    ids=["unicode", "separators", "apostrophe", "path", "long", "percent"],
)
def test_the_filename_is_returned(running: Running, filename: str) -> None:
    (result,) = running.upload((filename, image_file())).json()["results"]
    assert result["filename"] == filename


def test_a_filename_with_quotes_is_returned_as_curl_sends_it(running: Running) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="the \\"cat\\".png"\r\n\r\n'
        + image_file()
        + b"\r\n--b--\r\n"
    )
    (result,) = running.post(body, headers={"Content-Type": "multipart/form-data; boundary=b"}).json()["results"]
    assert result["filename"] == 'the "cat".png'


def test_an_empty_filename_is_returned_as_null(running: Running) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n' + image_file() + b"\r\n--b--\r\n"
    (result,) = running.post(body, headers={"Content-Type": "multipart/form-data; boundary=b"}).json()["results"]
    assert result["filename"] is None


def test_other_fields_of_a_form_are_ignored(running: Running) -> None:
    response = running.client.post(
        "/predict",
        files=[("file", ("a.png", image_file(1))), ("other", ("b.png", b"no picture"))],
        data={"note": "mine"},
    )
    (result,) = response.json()["results"]
    assert result["filename"] == "a.png"


def test_server_timing_has_decode_queue_and_inference(running: Running) -> None:
    running.engine.seconds = 0.05
    response = running.post(image_file())
    running.engine.seconds = 0.0
    timings = dict(entry.split(";dur=") for entry in response.headers["Server-Timing"].split(", "))
    assert set(timings) == {"decode", "queue", "inference", "total"}
    milliseconds = {name: float(value) for name, value in timings.items()}
    assert 50 <= milliseconds["inference"] <= milliseconds["total"]
    assert milliseconds["total"] < 20_000


def test_concurrent_requests_get_their_own_results_from_shared_batches() -> None:
    count, each = 40, 3
    with serving(max_batch=16) as service, ThreadPoolExecutor(count + 1) as threads:
        service.engine.block()
        first = threads.submit(service.post, image_file(1000))
        service.engine.wait_entered()
        images = [[image_file(each * request + part) for part in range(each)] for request in range(count)]
        responses = [
            threads.submit(service.upload, *((str(part), data) for part, data in enumerate(files))) for files in images
        ]
        service.wait_admitted(1 + count * each)
        service.engine.release()
        for files, response in zip(images, responses, strict=True):
            results = response.result().json()["results"]
            assert [result["top_k"] for result in results] == [expected_ranking(data, 5) for data in files]
        assert first.result().status_code == 200
        assert sum(service.engine.batches) == 1 + count * each
        assert 8 < max(service.engine.batches) <= 16


def test_a_bad_image_never_joins_a_batch() -> None:
    with serving() as service:
        assert service.upload(("a", image_file(1)), ("b", b"cat"), ("c", image_file(2)[:-40])).status_code == 200
        assert service.engine.views == 1


def test_an_image_whose_client_disconnects_is_not_run() -> None:
    body = image_file(2)
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
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
        assert service.post(image_file(3)).status_code == 200
        assert service.engine.views == 2, "the image of the client that disconnected was not run"
        counted = 'tenfold_requests_total{model="fake-net",route="/predict",status="499"} 1.0'
        assert counted in service.client.get("/metrics").text


@pytest.mark.parametrize(("requested", "granted"), [("0.3", 0.3), ("60", 0.6)])
def test_a_request_may_lower_its_deadline_but_not_raise_it(requested: str, granted: float) -> None:
    with serving(timeout=0.6) as service:
        service.engine.block()
        began = time.monotonic()
        response = service.post(image_file(), headers={"X-Request-Timeout": requested})
        assert response.status_code == 504
        assert f"within {granted:g} s" in response.json()["detail"]
        assert time.monotonic() - began > granted - 0.05


def test_a_full_queue_refuses_before_the_body_is_read() -> None:
    with serving(queue_size=2, max_files=2) as service, service.connect() as connection:
        service.engine.block()
        holding = service.in_background(lambda: service.upload(*[("a.png", image_file())] * 2))
        service.wait_admitted(2)
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 503 ")
        service.engine.release()
        assert holding.result().status_code == 200


def test_a_client_that_disconnects_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serving() as service:
        with service.connect() as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
            eventually(lambda: bool(service.server.server_state.tasks), "the request has begun")
        eventually(lambda: " 499 " in caplog.text, "the access log has it")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_images_of_a_failed_request_leave_the_queue_with_it() -> None:
    class FirstCallFails(FakeEngine):
        def run(self, pixels: NDArray[np.uint8]) -> Outputs:
            if not self.batches:
                self.batches.append(len(pixels))
                raise RuntimeError("out of memory")
            return super().run(pixels)

    engine = FirstCallFails()
    with serving(engine, max_batch=1) as service:
        engine.block()
        assert service.upload(*[("a.png", image_file())] * 10).status_code == 500
        service.wait_admitted(0)
        engine.release()
        assert service.post(image_file()).status_code == 200
        assert engine.views <= 3, "what failed, what the engine had begun by then, and the next request"
