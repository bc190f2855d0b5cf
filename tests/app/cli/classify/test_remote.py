"""Asking a service: a real one, that is busy, limited, locked, or goes away."""

import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pytest

from app.cli.classify.paths import Lost
from app.cli.classify.remote import Remote
from app.cli.classify.results import Result, Unusable
from tests.app.fakes import FakeEngine, photo, picture
from tests.app.running import Running, eventually, serving


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A hundred different pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    return [written(folder / f"{seed:03}.png", picture(seed)) for seed in range(100)]


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


class PredictParams:
    """A caller, and what it said meanwhile."""

    def __init__(self, running: Running | None = None, *, url: str = "", **options: Any) -> None:
        self.said: list[str] = []
        parameters: dict[str, float | None] = {
            name: options.pop(name) for name in list(options) if name in ("top_k", "views", "min_confidence")
        }
        chosen = {"api_key": None, "patience": 20.0, "max_bytes": 20_000_000, **options}
        address = f"http://127.0.0.1:{running.port}" if running else url
        self.remote = Remote(address, parameters=parameters, say=self.said.append, **chosen)

    def groups(self, paths: Iterable[str | Lost]) -> Iterator[list[Result]]:
        return self.remote.results(paths)

    def all(self, paths: Iterable[str | Lost]) -> list[Result]:
        return list(chain.from_iterable(self.groups(paths)))


def without_answers(results: Iterable[Result]) -> dict[str, str | None]:
    return {Path(result.path).name: result.error for result in results if result.error is not None}


def test_each_file_is_answered_as_if_it_were_alone(running: Running, files: list[str], tmp_path: Path) -> None:
    large = written(tmp_path / "large.png", photo())
    paths = [*files[:40], large]
    results = PredictParams(running, top_k=3, views=3, min_confidence=0.9).all(paths)
    assert [result.path for result in results] == paths
    for result in (*results[::13], results[-1]):
        data = Path(result.path).read_bytes()
        said = running.post(data, params={"top_k": 3, "views": 3, "min_confidence": 0.9}).json()
        assert {**result.answer, "filename": None} == said["results"][0]
        assert result.model == said["model"]
    assert results[-1].answer["views"] == 3


def test_several_files_share_a_request_and_each_is_sent_once(files: list[str]) -> None:
    with serving() as running:
        assert without_answers(PredictParams(running).all(files)) == {}
        assert running.engine.views == len(files)
        requests = 'tenfold_requests_total{route="/predict",status="200"} '
        (line,) = [line for line in running.client.get("/metrics").text.splitlines() if line.startswith(requests)]
        assert float(line.removeprefix(requests)) < 20


def test_bad_files_are_told_of_in_their_place(running: Running, files: list[str], tmp_path: Path) -> None:
    text = written(tmp_path / "notes.txt", b"not a picture")
    cut = written(tmp_path / "cut.png", picture()[:60])
    empty = written(tmp_path / "empty.png", b"")
    huge = written(tmp_path / "huge.png", b"x" * 1001)
    gone = str(tmp_path / "gone.png")
    lost = Lost(str(tmp_path / "folder"), "no pictures are in this folder")
    paths: list[str | Lost] = [text, files[0], cut, empty, files[1], huge, gone, lost, files[2]]
    results = PredictParams(running, max_bytes=1000).all(paths)
    assert [result.path for result in results] == [path.path if isinstance(path, Lost) else path for path in paths]
    errors = without_answers(results)
    assert set(errors) == {"notes.txt", "cut.png", "empty.png", "huge.png", "gone.png", "folder"}
    assert "not a picture in an accepted format" in str(errors["notes.txt"])
    assert "damaged" in str(errors["cut.png"])
    assert errors["empty.png"] == "it is empty"
    assert errors["huge.png"] == "it has more than 1,000 bytes"
    assert errors["gone.png"] == "it cannot be read (No such file or directory)"
    assert errors["folder"] == "no pictures are in this folder"


@pytest.mark.parametrize("alone", ["notes.txt", "cut.png"])
def test_a_bad_file_alone_in_its_request_is_told_of_too(running: Running, tmp_path: Path, alone: str) -> None:
    path = written(tmp_path / alone, b"not a picture" if alone == "notes.txt" else picture()[:60])
    assert set(without_answers(PredictParams(running).all([path]))) == {alone}


def test_a_busy_service_is_asked_again_when_it_says(files: list[str]) -> None:
    engine = FakeEngine()
    with serving(engine, queue_size=32) as running:
        for seed in range(40):  # so that it knows how fast it is, and says: in a second
            running.post(picture(seed))
        engine.block()
        others = [running.in_background(lambda: running.post(picture())) for _ in range(32)]
        running.wait_admitted(32)
        asked = PredictParams(running)
        results: list[Result] = []
        asking = threading.Thread(target=lambda: results.extend(asked.all(files)))
        began = time.monotonic()
        asking.start()
        eventually(lambda: bool(asked.said), "it is told to come again")
        engine.release()
        asking.join(30)
        assert time.monotonic() - began > 1, "after the second of Retry-After"
        assert [result.path for result in results] == files
        assert without_answers(results) == {}
        assert all(other.result().status_code == 200 for other in others)
        assert engine.views == 40 + 32 + len(files), "nothing was answered twice"
    assert len(asked.said) >= 1
    assert "is busy (32 pictures are under way and 32 may be" in asked.said[0]


def test_a_service_that_stays_busy_is_given_up_after_the_patience(files: list[str]) -> None:
    engine = FakeEngine()
    with serving(engine, queue_size=32) as running:
        engine.block()
        others = [running.in_background(lambda: running.post(picture())) for _ in range(32)]
        running.wait_admitted(32)
        errors = without_answers(PredictParams(running, patience=1.2).all(files))
        engine.release()
        assert all(other.result().status_code == 200 for other in others)
    assert len(errors) == len(files)
    assert all(str(error).startswith("no answer within 1.2 s: http") for error in errors.values())


def test_a_service_that_takes_fewer_files_gets_fewer(files: list[str]) -> None:
    with serving(max_files=5) as running:
        assert without_answers(PredictParams(running).all(files * 4)) == {}
        assert running.engine.views == 4 * len(files)
        refused = 'tenfold_rejections_total{reason="too-many-files"} '
        (line,) = [line for line in running.client.get("/metrics").text.splitlines() if line.startswith(refused)]
        assert float(line.removeprefix(refused)) < 30, "it has learned; else more than 80"


def test_a_service_that_takes_fewer_bytes_gets_fewer(tmp_path: Path, files: list[str]) -> None:
    too_large = written(tmp_path / "large.bmp", picture(size=(100, 100), kind="BMP"))
    with serving(max_body_bytes=2000) as running:
        results = PredictParams(running).all([*files, too_large])
        assert running.engine.views == len(files)
    assert [result.path for result in results] == [*files, too_large]
    assert set(without_answers(results)) == {"large.bmp"}
    assert "more than 2,000 bytes" in str(results[-1].error)


def test_a_picture_too_slow_for_the_deadline_does_not_take_its_neighbours_along(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.seconds = 0.2
    paths = [written(tmp_path / f"{seed}.png", picture(seed)) for seed in range(4)]
    with serving(engine, timeout=0.7, max_batch=1) as running:
        results = PredictParams(running).all(paths)
    assert without_answers(results) == {}, "four take 0.8 s, two 0.4 s"


def test_an_engine_that_fails_costs_its_batch_alone(files: list[str]) -> None:
    engine = FakeEngine()
    with serving(engine, stall_timeout=60) as running:
        engine.failure = RuntimeError("CUDA on fire")
        (result,) = PredictParams(running).all(files[:1])
    assert "report it with the request id" in str(result.error)


def test_a_service_that_goes_away_for_good_leaves_the_rest_unanswered(files: list[str]) -> None:
    engine = FakeEngine()
    engine.seconds = 0.05
    with serving(engine) as running:
        asked = PredictParams(running, patience=1.0)
        groups = asked.groups(chain(files, files, files))
        results = next(groups)
        running.server.should_exit = True
        results.extend(chain.from_iterable(groups))
    assert [result.path for result in results] == files * 3
    answered = [result.error is None for result in results]
    assert answered[0]
    assert not answered[-1]
    assert engine.views == sum(answered)
    assert "no answer within 1 s: http" in str(results[-1].error)
    assert "trying again for 1 s" in asked.said[0]


def test_a_service_that_comes_back_answers_the_rest(files: list[str]) -> None:
    first, second = FakeEngine(), FakeEngine()
    first.seconds = 0.05
    with serving(first) as running:
        port = running.port
        groups = PredictParams(running).groups(chain(files, files))
        results = next(groups)
    with serving(second, port=port):
        results.extend(chain.from_iterable(groups))
    assert [result.path for result in results] == files * 2
    assert without_answers(results) == {}
    assert first.views + second.views == len(results), "what was answered is not sent again"
    assert second.views > 0


def test_a_key_opens(files: list[str]) -> None:
    with serving(api_keys="secret") as running:
        assert without_answers(PredictParams(running, api_key="secret").all(files[:3])) == {}
        for wrong in (None, "other"):
            with pytest.raises(Unusable, match="wants another API key"):
                PredictParams(running, api_key=wrong)
        with pytest.raises(Unusable, match="this is no key"):
            PredictParams(running, api_key="schlüssel")


def test_what_the_service_refuses_for_all_ends_the_run(running: Running, files: list[str]) -> None:
    with pytest.raises(Unusable, match="answered 422: top_k is 11: choose 1 to 10"):
        PredictParams(running, top_k=11).all(files)


def test_a_service_that_loads_is_not_ready() -> None:
    held = threading.Event()

    def load() -> Any:
        assert held.wait(20)
        raise RuntimeError("never mind")

    with serving(load=load, wait_ready=False) as running:
        try:
            with pytest.raises(Unusable, match="is not ready: the model is loading"):
                PredictParams(running)
        finally:
            held.set()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9", "no service answers at http://127.0.0.1:9 "),
        ("127.0.0.1:8000", "is no address of a service"),
        ("ftp://127.0.0.1", "is no address of a service"),
        ("http://127.0.0.1:port", "is no address of a service"),
        ("", "is no address of a service"),
    ],
)
def test_a_service_that_is_not_there(url: str, says: str) -> None:
    with pytest.raises(Unusable, match=says):
        PredictParams(url=url)


class _Other(BaseHTTPRequestHandler):
    """A web server that says yes to everything."""

    def do_GET(self) -> None:
        self._yes()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._yes()

    def _yes(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002


class _Busy(_Other):
    """Asks for two seconds, once."""

    posted: ClassVar[list[float]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.posted.append(time.monotonic())
        if len(self.posted) > 1:
            self._yes()
        else:
            self.send_response(503)
            self.send_header("Retry-After", "2")
            self.send_header("Content-Length", "0")
            self.end_headers()


def test_as_long_as_a_service_asks_for_it_is_left_alone(files: list[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), _Busy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(Unusable):  # for the second answer is none
                PredictParams(url=f"http://127.0.0.1:{server.server_port}").all(files[:1])
        finally:
            server.shutdown()
            thread.join()
    first, second = _Busy.posted
    assert second - first > 1.9


def test_another_server_is_told_from_a_service(files: list[str]) -> None:
    with HTTPServer(("127.0.0.1", 0), _Other) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with pytest.raises(Unusable, match="does not answer as Tenfold does"):
                PredictParams(url=f"http://127.0.0.1:{server.server_port}").all(files)
        finally:
            server.shutdown()
            thread.join()
