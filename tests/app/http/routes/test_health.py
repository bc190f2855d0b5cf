import signal
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from app.serving.children import AVAILABLE
from model import Classifier, IntegrityError
from tests.app.fakes import CARD, FakeEngine, fake_classifier, image_file, photo
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Running, eventually, serving

READY_PATHS = ["/readyz", "/healthz"]


@pytest.fixture
def loaded() -> Iterator[threading.Event]:
    """Set when the model of the service `loading` may be loaded."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def loading(loaded: threading.Event) -> Iterator[Running]:
    def load() -> Classifier:
        loaded.wait(30)
        return fake_classifier(FakeEngine())

    with serving(load=load, wait_ready=False) as running:
        yield running
        loaded.set()


def fails_to_load(error: Exception) -> Callable[[], Classifier]:
    def load() -> Classifier:
        raise error

    return load


def is_unready(response: httpx.Response, reason: str) -> None:
    assert reason in is_a_problem(response, 503)["detail"]
    assert int(response.headers["Retry-After"]) >= 1


def test_probes_of_a_ready_service_are_200(running: Running) -> None:
    assert running.client.get("/livez").json() == {"status": "alive"}
    for path in READY_PATHS:
        response = running.client.get(path)
        assert (response.status_code, response.json()) == (200, {"status": "ready"})


@pytest.mark.parametrize("path", ["/livez", *READY_PATHS])
def test_probes_accept_head(running: Running, path: str) -> None:
    response = running.client.head(path)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", READY_PATHS)
def test_a_loading_service_is_alive_but_not_ready(loading: Running, loaded: threading.Event, path: str) -> None:
    assert loading.client.get("/livez").status_code == 200
    is_unready(loading.client.get(path), "loading")
    assert loading.client.head(path).status_code == 503
    is_unready(loading.client.get("/model"), "loading")
    is_unready(loading.post(image_file()), "loading")
    loaded.set()
    eventually(lambda: loading.client.get(path).status_code == 200, "the service is ready")
    assert loading.post(image_file()).status_code == 200


@pytest.mark.parametrize(
    "error", [IntegrityError("the weights differ: fetch the bundle again"), RuntimeError("CUDA on fire")], ids=repr
)
def test_a_model_that_cannot_be_loaded_is_neither_ready_nor_alive(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()
    with serving(load=fails_to_load(error), on_failure=called.set, wait_ready=False) as running:
        assert called.wait(20), "on_failure is called"
        for path in ("/livez", *READY_PATHS):
            is_unready(running.client.get(path), "could not be loaded")
            assert str(error) not in running.client.get(path).text
        is_unready(running.post(image_file()), "could not be loaded")
    assert str(error) in caplog.text
    expected = isinstance(error, IntegrityError)
    assert ("Traceback" in caplog.text) != expected, "an error of the model is one sentence"


@pytest.mark.parametrize("path", READY_PATHS)
def test_a_draining_service_is_alive_and_not_ready_and_still_answers(path: str) -> None:
    with serving() as running:
        running.service.drain()
        is_unready(running.client.get(path), "shutting down")
        assert running.client.get("/livez").status_code == 200
        assert running.post(image_file()).status_code == 200
        assert running.client.get("/model").status_code == 200


def test_a_service_that_drains_while_it_loads_never_becomes_ready(loading: Running, loaded: threading.Event) -> None:
    loading.service.drain()
    loaded.set()
    eventually(lambda: loading.client.get("/model").status_code == 200, "the model is loaded")
    is_unready(loading.client.get("/readyz"), "shutting down")


def test_an_engine_that_stalls_fails_the_service(caplog: pytest.LogCaptureFixture) -> None:
    called = threading.Event()
    with serving(stall_timeout=0.1, on_failure=called.set) as running:
        running.engine.block()
        pending = running.in_background(lambda: running.post(image_file()))
        running.engine.wait_entered()
        assert called.wait(20), "on_failure is called"
        for path in ("/livez", *READY_PATHS):
            is_unready(running.client.get(path), "restart the service")
        is_unready(running.post(image_file()), "restart the service")
        running.engine.release()
        assert pending.result().status_code == 200, "the request that waited for it is answered"
        is_unready(running.client.get("/livez"), "restart the service")
    assert f"the engine of {CARD.name} does not work any more: a batch has run for more than 0.1 s" in caplog.text


def test_three_failures_in_succession_fail_the_service() -> None:
    called = threading.Event()
    with serving(on_failure=called.set) as running:
        running.engine.failure = RuntimeError("CUDA on fire")
        assert [running.post(image_file()).status_code for _ in range(3)] == [500] * 3
        is_unready(running.client.get("/livez"), "3 batches in succession have failed")
        assert called.wait(20), "on_failure is called"
        running.engine.failure = None
        is_unready(running.post(image_file()), "3 batches in succession have failed")
        assert running.engine.batches == [1] * 3, "nothing is run any more"


def test_failures_with_a_success_between_them_do_not_count() -> None:
    called = threading.Event()
    with serving(on_failure=called.set) as running:
        for failure in (RuntimeError("one"), RuntimeError("two"), None, RuntimeError("three"), RuntimeError("four")):
            running.engine.failure = failure
            assert running.post(image_file()).status_code == (500 if failure else 200)
        assert not called.wait(1.2)
        assert running.client.get("/livez").status_code == 200


def test_probes_are_answered_while_the_engine_is_busy() -> None:
    with serving() as running:
        running.engine.block()
        pending = running.in_background(lambda: running.post(image_file()))
        running.engine.wait_entered()
        assert running.client.get("/livez").status_code == 200
        assert running.client.get("/readyz").status_code == 200
        assert not pending.done
        running.engine.release()
        assert pending.result().status_code == 200


@pytest.mark.slow
@pytest.mark.skipif(not AVAILABLE, reason="no child processes on this system")
def test_stalled_decoders_fail_the_probes() -> None:
    """The process that starts and ends them is stopped. Small images are decoded without them."""
    with serving(timeout=2, decode_timeout=0.5) as service:
        assert service.post(photo()).status_code == 200
        children = service.service.decoder._children
        assert children
        assert children._template
        children._template.send_signal(signal.SIGSTOP)
        for _ in range(2):  # the first one may use the child of before
            service.post(image_file(size=(6000, 4000), kind="WEBP"))
        eventually(lambda: service.client.get("/livez").status_code == 503, "the stall is noticed")
        for path in ("/livez", *READY_PATHS, "/v2/health/live", "/v2/health/ready"):
            assert service.client.get(path).status_code == 503, path
        assert service.post(image_file()).status_code == 200
        children._template.send_signal(signal.SIGCONT)
        eventually(lambda: service.client.get("/livez").status_code == 200, "the service recovers")
