from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model import prepare
from tests.app.fakes import CARD, LABELS, FakeEngine, fake_classifier, picture
from tests.app.serving import Running, eventually, serving


def expected_ranking(data: bytes, k: int) -> list[dict[str, Any]]:
    """What the classifier says of a picture when it is asked directly."""
    pixels = prepare(data, CARD.input, max_pixels=10**9).pixels
    (prediction,) = fake_classifier(FakeEngine()).classify(pixels[None])
    return [
        {"label": one.label, "index": one.index, "probability": pytest.approx(one.probability, rel=1e-4, abs=1e-6)}
        for one in prediction.top_k(k)
    ]


def test_one_picture_is_answered_in_the_documented_shape(running: Running) -> None:
    answer = running.upload(("cat.png", picture(1)), params={"top_k": 2})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json() == {
        "model": {"name": "fake-net", "version": "0123456789ab"},
        "results": [
            {
                "filename": "cat.png",
                "width": 32,
                "height": 32,
                "top_k": expected_ranking(picture(1), 2),
                "warnings": [],
            }
        ],
    }


def test_several_pictures_are_answered_in_their_order(running: Running) -> None:
    pictures = [picture(seed) for seed in range(9)]
    answer = running.upload(*((f"{seed}.png", data) for seed, data in enumerate(pictures)))
    results = answer.json()["results"]
    assert [result["filename"] for result in results] == [f"{seed}.png" for seed in range(9)]
    assert [result["top_k"] for result in results] == [expected_ranking(data, 5) for data in pictures]


def test_a_bad_picture_among_several_carries_its_own_problem(running: Running) -> None:
    answer = running.upload(
        ("good.png", picture(1)), ("torn.png", picture(2)[:-40]), ("text.png", b"cat"), ("b.png", picture(3))
    )
    assert answer.status_code == 200
    good, torn, text, other = answer.json()["results"]
    assert good["top_k"] == expected_ranking(picture(1), 5)
    assert other["top_k"] == expected_ranking(picture(3), 5)
    for result, name, status in ((torn, "torn.png", 422), (text, "text.png", 415)):
        assert set(result) == {"filename", "problem"}
        assert result["filename"] == name
        assert set(result["problem"]) == {"type", "title", "status", "detail", "instance"}
        assert result["problem"]["status"] == status
        assert result["problem"]["instance"] == answer.headers["X-Request-ID"]


def test_a_request_of_bad_pictures_only_is_answered_one_by_one(running: Running) -> None:
    answer = running.upload(("a", b"cat"), ("b", b"dog"))
    assert answer.status_code == 200
    assert [result["problem"]["status"] for result in answer.json()["results"]] == [415, 415]


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
def test_a_raw_body_is_one_picture_without_a_name(running: Running, headers: dict[str, str]) -> None:
    (result,) = running.post(picture(4), headers=headers).json()["results"]
    assert result["filename"] is None
    assert result["top_k"] == expected_ranking(picture(4), 5)


def test_the_type_that_a_picture_is_sent_with_does_not_matter(running: Running) -> None:
    (result,) = running.post(picture(5), headers={"Content-Type": "image/jpeg"}).json()["results"]
    assert result["top_k"] == expected_ranking(picture(5), 5)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_common_format_is_accepted(running: Running, kind: str) -> None:
    data = picture(6, size=(50, 40), kind=kind)
    (result,) = running.post(data).json()["results"]
    assert (result["width"], result["height"]) == (50, 40)
    assert result["top_k"] == expected_ranking(data, 5)


@pytest.mark.parametrize("k", range(1, 11))
def test_top_k_says_how_many_classes_are_returned(running: Running, k: int) -> None:
    (result,) = running.post(picture(7), params={"top_k": k}).json()["results"]
    assert len(result["top_k"]) == k


def test_five_classes_are_returned_if_nothing_is_said(running: Running) -> None:
    (result,) = running.post(picture(7)).json()["results"]
    assert len(result["top_k"]) == 5


def test_the_ranking_is_sorted_and_its_probabilities_sum_to_one(running: Running) -> None:
    (result,) = running.post(picture(8), params={"top_k": 10}).json()["results"]
    probabilities = [ranked["probability"] for ranked in result["top_k"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert {ranked["label"] for ranked in result["top_k"]} == set(LABELS)
    assert all(LABELS[ranked["index"]] == ranked["label"] for ranked in result["top_k"])


def test_width_and_height_are_those_of_the_picture_as_seen(running: Running) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    data = picture(9, size=(60, 40), kind="JPEG", exif=exif)
    (result,) = running.post(data).json()["results"]
    assert (result["width"], result["height"]) == (40, 60)


def test_a_small_picture_is_answered_with_a_warning(running: Running) -> None:
    (result,) = running.post(picture(10, size=(8, 8))).json()["results"]
    assert result["warnings"] == ["upscaled from 8x8"]
    assert result["top_k"]


@pytest.mark.parametrize(
    "filename",
    ["кошка 猫 🐈.png", "a;b=c, d.png", "it's.png", "../../etc/passwd", "x" * 300, "%41%2f.png"],
    ids=["unicode", "separators", "apostrophe", "path", "long", "percent"],
)
def test_the_filename_is_echoed(running: Running, filename: str) -> None:
    (result,) = running.upload((filename, picture())).json()["results"]
    assert result["filename"] == filename


def test_a_filename_with_quotes_is_echoed_as_curl_sends_it(running: Running) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="the \\"cat\\".png"\r\n\r\n'
        + picture()
        + b"\r\n--b--\r\n"
    )
    (result,) = running.post(body, headers={"Content-Type": "multipart/form-data; boundary=b"}).json()["results"]
    assert result["filename"] == 'the "cat".png'


def test_an_empty_filename_is_echoed_as_none(running: Running) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"; filename=""\r\n\r\n' + picture() + b"\r\n--b--\r\n"
    (result,) = running.post(body, headers={"Content-Type": "multipart/form-data; boundary=b"}).json()["results"]
    assert result["filename"] is None


def test_other_fields_of_a_form_are_ignored(running: Running) -> None:
    answer = running.client.post(
        "/predict", files=[("file", ("a.png", picture(1))), ("other", ("b.png", b"no picture"))], data={"note": "mine"}
    )
    (result,) = answer.json()["results"]
    assert result["filename"] == "a.png"


def test_server_timing_tells_of_decoding_waiting_and_inference(running: Running) -> None:
    running.engine.seconds = 0.05
    answer = running.post(picture())
    running.engine.seconds = 0.0
    timings = dict(entry.split(";dur=") for entry in answer.headers["Server-Timing"].split(", "))
    assert set(timings) == {"decode", "queue", "inference", "total"}
    milliseconds = {name: float(value) for name, value in timings.items()}
    assert 50 <= milliseconds["inference"] <= milliseconds["total"]
    assert milliseconds["total"] < 20_000


def test_concurrent_requests_each_get_their_own_answer_out_of_shared_batches() -> None:
    count, each = 40, 3
    with serving(max_batch=16) as service, ThreadPoolExecutor(count + 1) as threads:
        service.engine.block()
        first = threads.submit(service.post, picture(1000))
        service.engine.wait_entered()
        pictures = [[picture(each * request + part) for part in range(each)] for request in range(count)]
        answers = [
            threads.submit(service.upload, *((str(part), data) for part, data in enumerate(files)))
            for files in pictures
        ]
        service.wait_admitted(1 + count * each)
        service.engine.release()
        for files, answer in zip(pictures, answers, strict=True):
            results = answer.result().json()["results"]
            assert [result["top_k"] for result in results] == [expected_ranking(data, 5) for data in files]
        assert first.result().status_code == 200
        assert sum(service.engine.batches) == 1 + count * each
        assert 8 < max(service.engine.batches) <= 16


def test_a_bad_picture_never_joins_the_batch_of_others() -> None:
    with serving() as service:
        assert service.upload(("a", picture(1)), ("b", b"cat"), ("c", picture(2)[:-40])).status_code == 200
        assert service.engine.pictures == 1


def test_a_caller_who_hangs_up_while_waiting_costs_no_inference() -> None:
    body = picture(2)
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving() as service:
        service.engine.block()
        first = service.in_background(lambda: service.post(picture(1)))
        service.engine.wait_entered()
        with service.connect() as connection:
            connection.sendall(head.encode() + body)
            service.wait_admitted(2)
        service.wait_admitted(1)
        service.engine.release()
        assert first.result().status_code == 200
        service.wait_admitted(0)
        assert service.post(picture(3)).status_code == 200
        assert service.engine.pictures == 2, "that of who hung up was not computed"


def test_a_caller_who_hangs_up_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with serving() as service:
        with service.connect() as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
            eventually(lambda: bool(service.server.server_state.tasks), "the request has begun")
        eventually(lambda: " 499 " in caplog.text, "the access log tells of it")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_pictures_of_a_failed_request_leave_the_queue_with_it() -> None:
    class FirstCallFails(FakeEngine):
        def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
            if not self.batches:
                self.batches.append(len(pixels))
                raise RuntimeError("out of memory")
            return super().logits(pixels)

    engine = FirstCallFails()
    with serving(engine, max_batch=1) as service:
        engine.block()
        assert service.upload(*[("a.png", picture())] * 10).status_code == 500
        service.wait_admitted(0)
        engine.release()
        assert service.post(picture()).status_code == 200
        assert engine.pictures <= 3, "what failed, what the engine had begun by then, and the next request"
