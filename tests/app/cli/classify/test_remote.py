"""Classification by a real service that is busy, limited, protected or stopped."""

import threading
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from app.cli.classify.paths import BadPath
from app.cli.classify.remote import RemoteClassifier
from app.cli.classify.results import CommandError, Result
from tests.app.another_program import another_program
from tests.app.fakes import FakeEngine, fake_classifier, image_file, photo
from tests.app.running import Running, eventually, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A hundred different images."""
    folder = tmp_path_factory.mktemp("images")
    return [write(folder / f"{seed:03}.png", image_file(seed)) for seed in range(100)]


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


class Client:
    """A RemoteClassifier and the messages that it sent to the user."""

    def __init__(self, running: Running | None = None, *, url: str = "", **options: Any) -> None:
        self.messages: list[str] = []
        parameters: dict[str, float | None] = {
            name: options.pop(name) for name in list(options) if name in ("top_k", "views", "min_confidence")
        }
        chosen = {"api_key": None, "model": None, "retry_timeout": 20.0, "max_bytes": 20_000_000, **options}
        address = f"http://127.0.0.1:{running.port}" if running else url
        self._remote = RemoteClassifier(address, parameters=parameters, notify=self.messages.append, **chosen)

    def groups(self, paths: Iterable[str | BadPath]) -> Iterator[list[Result]]:
        return self._remote.classify(paths)

    def all(self, paths: Iterable[str | BadPath]) -> list[Result]:
        return list(chain.from_iterable(self.groups(paths)))


def errors_in(results: Iterable[Result]) -> dict[str, str | None]:
    return {Path(result.path).name: result.error for result in results if result.error is not None}


def test_a_file_has_the_same_result_as_in_a_request_of_its_own(
    running: Running, files: list[str], tmp_path: Path
) -> None:
    large = write(tmp_path / "large.png", photo())
    paths = [*files[:40], large]
    results = Client(running, top_k=3, views=3, min_confidence=0.9).all(paths)
    assert [result.path for result in results] == paths
    for result in (*results[::13], results[-1]):
        data = Path(result.path).read_bytes()
        expected = running.post(data, params={"top_k": 3, "views": 3, "min_confidence": 0.9}).json()
        assert {**result.prediction, "filename": None} == expected["results"][0]
        assert result.model == expected["model"]
    assert results[-1].prediction["views"] == 3


def test_several_files_share_a_request_and_each_is_sent_once(files: list[str]) -> None:
    with serving() as running:
        assert errors_in(Client(running).all(files)) == {}
        assert running.engine.views == len(files)
        requests = 'tenfold_requests_total{model="fake-net",route="/predict",status="200"} '
        (line,) = [line for line in running.client.get("/metrics").text.splitlines() if line.startswith(requests)]
        assert float(line.removeprefix(requests)) < 20


def test_errors_are_reported_in_place(running: Running, files: list[str], tmp_path: Path) -> None:
    text = write(tmp_path / "notes.txt", b"plain text")
    cut = write(tmp_path / "cut.png", image_file()[:60])
    empty = write(tmp_path / "empty.png", b"")
    huge = write(tmp_path / "huge.png", b"x" * 1001)
    gone = str(tmp_path / "gone.png")
    folder = BadPath(str(tmp_path / "folder"), "no images are in this folder")
    paths: list[str | BadPath] = [text, files[0], cut, empty, files[1], huge, gone, folder, files[2]]
    results = Client(running, max_bytes=1000).all(paths)
    assert [result.path for result in results] == [path.path if isinstance(path, BadPath) else path for path in paths]
    errors = errors_in(results)
    assert set(errors) == {"notes.txt", "cut.png", "empty.png", "huge.png", "gone.png", "folder"}
    assert "accepted format" in str(errors["notes.txt"])
    assert "damaged" in str(errors["cut.png"])
    assert errors["empty.png"] == "it is empty"
    assert errors["huge.png"] == "it has more than 1,000 bytes"
    assert errors["gone.png"] == "it cannot be read (No such file or directory)"
    assert errors["folder"] == "no images are in this folder"


@pytest.mark.parametrize("alone", ["notes.txt", "cut.png"])
def test_a_bad_file_alone_in_its_request_is_reported_too(running: Running, tmp_path: Path, alone: str) -> None:
    path = write(tmp_path / alone, b"plain text" if alone == "notes.txt" else image_file()[:60])
    assert set(errors_in(Client(running).all([path]))) == {alone}


def test_requests_to_a_busy_service_are_retried_after_the_time_it_says(files: list[str]) -> None:
    engine = FakeEngine()
    with serving(engine, queue_size=32, timeout=60.0) as running:
        for seed in range(40):  # so that it has measured its rate, and Retry-After is 1
            running.post(image_file(seed))
        engine.block()
        others = [running.in_background(lambda: running.post(image_file())) for _ in range(32)]
        running.wait_admitted(32)
        client = Client(running)
        results: list[Result] = []
        classifying = threading.Thread(target=lambda: results.extend(client.all(files)))
        began = time.monotonic()
        classifying.start()
        eventually(lambda: bool(client.messages), "the service is busy")
        engine.release()
        classifying.join(30)
        assert time.monotonic() - began > 1, "after the second of Retry-After"
        assert [result.path for result in results] == files
        assert errors_in(results) == {}
        assert all(other.result().status_code == 200 for other in others)
        assert engine.views == 40 + 32 + len(files), "no image was classified twice"
    assert len(client.messages) >= 1
    assert "is busy (" in client.messages[0]


def test_a_service_that_stays_busy_is_given_up(files: list[str]) -> None:
    engine = FakeEngine()
    with serving(engine, queue_size=32, timeout=60.0) as running:
        engine.block()
        others = [running.in_background(lambda: running.post(image_file())) for _ in range(32)]
        running.wait_admitted(32)
        errors = errors_in(Client(running, retry_timeout=1.2).all(files))
        engine.release()
        assert all(other.result().status_code == 200 for other in others)
    assert len(errors) == len(files)
    assert all(str(error).startswith("no response within 1.2 s: http") for error in errors.values())


def test_the_service_limits_the_files_per_request(files: list[str]) -> None:
    with serving(max_files=5) as running:
        assert errors_in(Client(running).all(files * 4)) == {}
        assert running.engine.views == 4 * len(files)
        refused = 'tenfold_rejections_total{model="fake-net",reason="too-many-files"} '
        (line,) = [line for line in running.client.get("/metrics").text.splitlines() if line.startswith(refused)]
        assert float(line.removeprefix(refused)) < 30, "without learning the limit there would be more than 80"


def test_the_service_limits_the_bytes_per_request(tmp_path: Path, files: list[str]) -> None:
    too_large = write(tmp_path / "large.bmp", image_file(size=(100, 100), kind="BMP"))
    with serving(max_body_bytes=2000) as running:
        results = Client(running).all([*files, too_large])
        assert running.engine.views == len(files)
    assert [result.path for result in results] == [*files, too_large]
    assert set(errors_in(results)) == {"large.bmp"}
    assert "more than 2,000 bytes" in str(results[-1].error)


def test_a_request_that_exceeds_the_deadline_is_split(tmp_path: Path) -> None:
    engine = FakeEngine()
    paths = [write(tmp_path / f"{seed}.png", image_file(seed)) for seed in range(4)]
    results: list[Result] = []
    with serving(engine, timeout=2.0) as running:
        engine.block()
        client = Client(running)
        classifying = threading.Thread(target=lambda: results.extend(client.all(paths)))
        classifying.start()
        timed_out = 'tenfold_requests_total{model="fake-net",route="/predict",status="504"} 1.0\n'
        eventually(lambda: timed_out in running.client.get("/metrics").text, "the deadline of the request is over")
        engine.release()
        classifying.join(30)
    assert [result.path for result in results] == paths
    assert errors_in(results) == {}


def test_an_engine_error_is_reported_for_its_files(files: list[str]) -> None:
    engine = FakeEngine()
    with serving(engine, stall_timeout=60) as running:
        engine.failure = RuntimeError("CUDA on fire")
        (result,) = Client(running).all(files[:1])
    assert "request ID" in str(result.error)


def test_files_after_the_service_has_stopped_have_errors(files: list[str]) -> None:
    engine = FakeEngine()
    engine.seconds = 0.3
    with serving(engine) as running:
        client = Client(running, retry_timeout=1.0)
        groups = client.groups(files * 10)
        results = next(groups)
        running.server.should_exit = True
        results.extend(chain.from_iterable(groups))
    assert [result.path for result in results] == files * 10
    succeeded = [result.error is None for result in results]
    assert succeeded[0]
    assert not succeeded[-1]
    assert engine.views == sum(succeeded)
    assert "no response within 1 s: http" in str(results[-1].error)
    assert "retrying for 1 s" in client.messages[0]


def test_a_service_that_restarts_classifies_the_rest(files: list[str]) -> None:
    first, second = FakeEngine(), FakeEngine()
    first.seconds = 0.2
    with serving(first) as running:
        port = running.port
        groups = Client(running).groups(files * 3)
        results = next(groups)
    with serving(second, port=port):
        results.extend(chain.from_iterable(groups))
    assert [result.path for result in results] == files * 3
    assert errors_in(results) == {}
    assert first.views + second.views == len(results), "files with a result are not sent again"
    assert second.views > 0


def test_an_api_key_is_sent(files: list[str]) -> None:
    with serving(api_keys="secret") as running:
        assert errors_in(Client(running, api_key="secret").all(files[:3])) == {}
        for wrong, message in ((None, "requires an API key: give one"), ("other", "not accept this key: give another")):
            with pytest.raises(CommandError, match=message):
                Client(running, api_key=wrong)
        with pytest.raises(CommandError, match="ASCII"):
            Client(running, api_key="schlüssel")


def test_a_model_of_the_service_is_selected_by_its_name(files: list[str]) -> None:
    other = FakeEngine()
    with serving(others={"b": lambda: fake_classifier(other, "b")}) as running:
        results = Client(running, model="b").all(files[:3])
        assert [result.model and result.model["name"] for result in results] == ["b"] * 3
        assert (running.engine.views, other.views) == (0, 3)
        for unknown in ("c", "b/c", "ü?"):
            with pytest.raises(CommandError, match="responded with status 404: "):
                Client(running, model=unknown)


def test_invalid_parameters_end_the_command(running: Running, files: list[str]) -> None:
    with pytest.raises(CommandError, match="responded with status 422: top_k is 11"):
        Client(running, top_k=11).all(files)


def test_a_service_that_is_loading_is_not_ready() -> None:
    held = threading.Event()

    def load() -> Any:
        assert held.wait(20)
        raise RuntimeError("never mind")

    with serving(load=load, wait_ready=False) as running:
        try:
            with pytest.raises(CommandError, match="is not ready: "):
                Client(running)
        finally:
            held.set()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9", "the service at http://127.0.0.1:9 cannot be reached "),
        ("127.0.0.1:8000", "is not a valid URL"),
        ("ftp://127.0.0.1", "is not a valid URL"),
        ("http://127.0.0.1:port", "is not a valid URL"),
        ("", "is not a valid URL"),
    ],
)
def test_a_service_that_cannot_be_reached(url: str, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        Client(url=url)


def test_retry_after_is_obeyed(files: list[str]) -> None:
    with another_program((503, {"Retry-After": "2"}, b""), (200, {}, b"{}")) as program:
        with pytest.raises(CommandError):  # the second response is not Tenfold's
            Client(url=program.url).all(files[:1])
        first, second = program.posted
    assert second - first > 1.9


def test_a_path_of_a_service_is_not_its_root(running: Running) -> None:
    with pytest.raises(CommandError, match=r"no Tenfold service at .*/predict: give the root of one"):
        Client(url=f"http://127.0.0.1:{running.port}/predict")


def test_another_program_is_recognised(files: list[str]) -> None:
    with another_program() as program, pytest.raises(CommandError, match="is not a Tenfold service"):
        Client(url=program.url).all(files)
