"""Several models in one service: what is listed, which one a request gets, and when each is ready."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from model import Classifier, IntegrityError
from tests.app.fakes import CARD, FakeEngine, fake_classifier, image_file
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Running, eventually, serving

SERVED_CARD = {**CARD.model_dump(mode="json"), "version": CARD.version}


class Two:
    """A service with the default model and a model "b".

    Attributes:
        running: the service. Its `engine` is that of the default model.
        other: engine of "b".
        may_load: "b" waits for it while it loads.
    """

    def __init__(self, running: Running, other: FakeEngine, may_load: threading.Event) -> None:
        self.running, self.other, self.may_load = running, other, may_load

    def get(self, path: str) -> httpx.Response:
        return self.running.client.get(path)

    def post(self, model: str | None = None, path: str = "/predict") -> httpx.Response:
        return self.running.client.post(path, content=image_file(), params={"model": model} if model else {})


@contextlib.contextmanager
def two(*, slow: bool = False, **settings: Any) -> Iterator[Two]:
    other, may_load = FakeEngine(), threading.Event()
    if not slow:
        may_load.set()

    def load() -> Classifier:
        assert may_load.wait(60)
        return fake_classifier(other, "b")

    with serving(others={"b": load}, wait_ready=not slow, **settings) as running:
        try:
            yield Two(running, other, may_load)
        finally:
            may_load.set()
            other.release()


@pytest.fixture(scope="module")
def both() -> Iterator[Two]:
    with two() as service:
        yield service


@pytest.fixture
def slow() -> Iterator[Two]:
    """The second model is loading."""
    with two(slow=True) as service:
        eventually(lambda: service.running.core.catalog.state(CARD.name) == "ready", "the first is loaded")
        yield service


def test_the_complete_card_of_the_default_model_is_served_with_its_version(running: Running) -> None:
    response = running.client.get("/model")
    assert response.status_code == 200
    assert response.json() == SERVED_CARD
    assert running.client.get(f"/models/{CARD.name}").json() == SERVED_CARD


@pytest.mark.parametrize("path", ["/model", f"/models/{CARD.name}"])
def test_some_fields_of_the_card_can_be_requested(running: Running, path: str) -> None:
    fields = "name,version,input.crop,metrics.accepted,metrics.accepted.test,openvino.top1"
    assert running.client.get(path, params={"fields": fields}).json() == {
        "name": CARD.name,
        "version": CARD.version,
        "input": {"crop": 32},
        "metrics": {"accepted": {"test": 0.5, "drawn shapes": 0.5}},
        "openvino": None,
    }


@pytest.mark.parametrize("fields", ["", "nothing", "metrics.nothing", "name.length", "labels.0", "name,"])
def test_a_field_that_the_card_does_not_have_is_refused(running: Running, fields: str) -> None:
    is_a_problem(running.client.get("/model", params={"fields": fields}), 422)


def test_large_json_is_compressed_and_small_json_is_not(running: Running) -> None:
    large = running.client.get("/model")
    assert large.headers["Content-Encoding"] == "gzip"
    assert large.headers["Vary"] == "Accept-Encoding"
    assert int(large.headers["Content-Length"]) < len(large.content) / 2
    assert large.content == running.client.get("/model", headers={"Accept-Encoding": "identity"}).content
    small = running.post(image_file(), params={"top_k": 10})
    assert small.status_code == 200
    assert "Content-Encoding" not in small.headers
    files = [("file", (f"{number}.png", image_file(), "image/png")) for number in range(8)]
    many = running.client.post("/predict", files=files)
    assert many.headers["Content-Encoding"] == "gzip"
    assert len(many.json()["results"]) == 8


def test_the_only_model_is_the_default(running: Running) -> None:
    assert running.client.get("/models").json() == {
        "default": CARD.name,
        "models": [{"name": CARD.name, "version": CARD.version, "state": "ready"}],
        "feedback": False,
        "stores_images": False,
    }


def test_all_models_are_listed_in_order(both: Two) -> None:
    version = fake_classifier(FakeEngine(), "b").card.version
    assert both.get("/models").json() == {
        "default": CARD.name,
        "models": [
            {"name": CARD.name, "version": CARD.version, "state": "ready"},
            {"name": "b", "version": version, "state": "ready"},
        ],
        "feedback": False,
        "stores_images": False,
    }
    assert both.get("/models/b").json() == {**SERVED_CARD, "name": "b", "version": version}
    assert both.get("/model").json() == SERVED_CARD


@pytest.mark.parametrize("path", ["/predict", "/explain"])
def test_a_request_is_classified_by_the_model_that_it_names(both: Two, path: str) -> None:
    for name, engine in ((None, both.running.engine), (CARD.name, both.running.engine), ("b", both.other)):
        seen = engine.views
        response = both.post(name, path)
        assert response.status_code == 200
        assert response.json()["model"]["name"] == (name or CARD.name)
        assert engine.views == seen + 1


def test_an_unknown_model_is_refused_with_the_names_of_all(both: Two) -> None:
    for response in (both.post("c"), both.post("c", "/explain"), both.get("/models/c")):
        problem = is_a_problem(response, 404)
        assert problem["type"] == "urn:tenfold:unknown-model"
        assert problem["detail"] == f"there is no model 'c': choose one of {CARD.name}, b"
        assert "Retry-After" not in response.headers


def answer_to_the_head_of_a_request(service: Two, query: str) -> int:
    """The status of the response to a request whose body is never sent."""
    with service.running.connect() as connection:
        head = f"POST /predict?{query} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode())
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status


def test_a_model_that_is_loading_is_not_ready_and_the_other_is_used_meanwhile(slow: Two) -> None:
    for path in ("/readyz", "/healthz"):
        assert is_a_problem(slow.get(path), 503)["detail"] == "still loading: b"
    assert slow.get("/livez").status_code == 200
    assert [(each["version"], each["state"]) for each in slow.get("/models").json()["models"]] == [
        (CARD.version, "ready"),
        (None, "loading"),
    ]
    assert slow.post().status_code == 200
    for response in (slow.post("b"), slow.get("/models/b")):
        assert is_a_problem(response, 503)["detail"].startswith("the model b is loading")
    slow.may_load.set()
    eventually(lambda: slow.get("/readyz").status_code == 200, "both are ready")
    assert slow.post("b").status_code == 200


def test_a_request_for_a_model_that_cannot_be_used_is_refused_before_its_body_is_read(slow: Two) -> None:
    assert answer_to_the_head_of_a_request(slow, "model=b") == 503
    assert answer_to_the_head_of_a_request(slow, "model=c") == 404
    assert 'tenfold_rejections_total{model="b",reason="not-ready"} 1.0' in slow.get("/metrics").text


def test_a_model_that_cannot_be_loaded_fails_the_service_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    called = threading.Event()

    def load() -> Classifier:
        raise IntegrityError("weights/b differs: fetch the bundle again")

    with serving(others={"b": load}, on_failure=called.set, wait_ready=False) as running:
        assert called.wait(20), "on_failure is called"
        for path in ("/livez", "/readyz"):
            assert "the model b could not be loaded" in is_a_problem(running.client.get(path), 503)["detail"]
        assert [each["state"] for each in running.client.get("/models").json()["models"]] == ["ready", "failed"]
        assert running.post(image_file()).status_code == 200, "the other works until the process ends"
    assert "the model b cannot be loaded: weights/b differs: fetch the bundle again" in caplog.text


def test_a_card_with_another_name_than_the_model_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    called = threading.Event()
    with serving(name="a", on_failure=called.set, wait_ready=False):
        assert called.wait(20), "on_failure is called"
    assert f"the model a cannot be loaded: the name on the card is {CARD.name}, not a" in caplog.text


def test_a_dead_engine_fails_the_service_and_only_its_own_requests() -> None:
    called = threading.Event()
    other = FakeEngine()
    with serving(others={"b": lambda: fake_classifier(other, "b")}, on_failure=called.set) as running:
        other.failure = RuntimeError("CUDA on fire")
        for _ in range(3):
            assert running.post(image_file(), params={"model": "b"}).status_code == 500
        assert called.wait(20), "on_failure is called"
        for path in ("/livez", "/readyz"):
            assert "the engine of b does not work" in is_a_problem(running.client.get(path), 503)["detail"]
        response = running.post(image_file(), params={"model": "b"})
        assert is_a_problem(response, 503)["type"] == "urn:tenfold:not-alive"
        assert running.post(image_file()).status_code == 200
        assert running.client.get("/models").json()["models"][1]["state"] == "failed"


def test_a_full_queue_of_one_model_leaves_room_for_the_other() -> None:
    with two(queue_size=8, max_files=2) as service:
        service.running.engine.block()
        pending = [service.running.in_background(service.post) for _ in range(6)]
        service.running.wait_admitted(6)
        problem = is_a_problem(service.post(), 503)
        assert problem["type"] == "urn:tenfold:queue-full"
        assert f"6 images for {CARD.name} are in progress and the limit is 6" in problem["detail"]
        assert [service.post("b").status_code for _ in range(10)] == [200] * 10
        service.running.engine.release()
        assert [each.result().status_code for each in pending] == [200] * 6


def test_unfinished_uploads_for_one_model_leave_room_for_the_other() -> None:
    with two(max_uploads=8) as service, contextlib.ExitStack() as connections:
        for _ in range(6):
            connection = connections.enter_context(service.running.connect())
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        service.running.wait_uploads(6)
        large = image_file().ljust(2_000_000, b"x")
        assert is_a_problem(service.running.post(large), 503)["type"] == "urn:tenfold:too-many-uploads"
        assert service.running.post(large, params={"model": "b"}).status_code == 200


def test_a_flood_for_one_model_delays_the_other_only_little() -> None:
    """Clients of the default model send again at once, so its queue is always full. The bound has much room: with the
    requests of both models in one queue, each would wait for 3.2 s and more."""
    with two(queue_size=32, max_files=2, max_batch=1) as service:
        service.running.engine.seconds = 0.2
        ended = threading.Event()

        def flood() -> None:
            with httpx.Client(base_url=service.running.client.base_url, timeout=60) as client:
                while not ended.is_set():
                    if client.post("/predict", content=image_file()).status_code == 503:
                        time.sleep(0.05)

        clients = [threading.Thread(target=flood) for _ in range(18)]
        for client in clients:
            client.start()
        try:
            eventually(lambda: service.running.core.models.images.used[CARD.name] >= 16, "its queue is long")
            seconds = []
            for _ in range(5):
                began = time.monotonic()
                assert service.post("b").status_code == 200
                seconds.append(time.monotonic() - began)
        finally:
            ended.set()
            service.running.engine.seconds = 0.0
            for client in clients:
                client.join()
        assert sorted(seconds)[2] < 3.2
