"""Every way in which POST /predict and /explain can fail, over the wire. test_openapi.py holds the schema to it."""

import http.client
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from app.engine.errors import NotAlive, NotReady, QueueFull, SwapConflict, SwapInterrupted, SwapRefused
from app.http.problems import (
    TABLE,
    Errors,
    InvalidInference,
    NotStored,
    RequestIDReused,
    UnknownPrediction,
    problem_of,
    problem_response,
)
from model import MAX_VIEWS, Classifier, ImageError, UnreadableImage
from tests.app.fakes import FakeEngine, fake_classifier, image_file, photo
from tests.app.running import Running, eventually, serving

SECRET = "the-secret-of-/srv/weights"
BOUNDARY = "1f0c"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
PART = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
).encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()


PATHS = ("/predict", "/explain")


@dataclass
class Case:
    """One way to fail."""

    name: str
    status: int
    kind: str
    provoke: Callable[[Running], httpx.Response]
    settings: dict[str, Any] = field(default_factory=dict)
    retry_after: bool = False
    loading: bool = False
    ends: bool = False
    paths: tuple[str, ...] = PATHS


def raw(data: bytes, content_type: str = "image/png") -> Callable[[Running], httpx.Response]:
    return lambda service: service.post(data, headers={"Content-Type": content_type})


def multipart(body: bytes) -> Callable[[Running], httpx.Response]:
    return lambda service: service.post(body, headers=MULTIPART)


def parameter(name: str, value: str) -> Callable[[Running], httpx.Response]:
    return lambda service: service.post(image_file(), params={name: value})


def files(count: int) -> Callable[[Running], httpx.Response]:
    return lambda service: service.upload(*[("a.png", image_file())] * count)


def chunks() -> Iterator[bytes]:
    """A body that does not say its length."""
    for _ in range(50):
        yield bytes(1000)


def chunks_of_multipart() -> Iterator[bytes]:
    yield PART
    yield from chunks()


def huge_png() -> bytes:
    """A few bytes whose header announces 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
        + image_file()[33:]
    )


def a_full_queue(service: Running) -> httpx.Response:
    service.engine.block()
    files = [("file", ("a.png", image_file()))] * 4
    holding = service.in_background(lambda: service.client.post("/predict", files=files))
    service.wait_admitted(4)
    refused = service.post(image_file())
    service.engine.release()
    assert holding.result().status_code == 200
    return refused


def a_blocked_engine(service: Running, headers: dict[str, str] | None = None) -> httpx.Response:
    service.engine.block()
    response = service.post(image_file(), headers=headers)
    service.engine.release()
    return response


def no_time(service: Running) -> httpx.Response:
    return service.post(image_file(), headers={"X-Request-Timeout": "0"})


def begun(service: Running, length: int) -> bytes:
    """The head of a request whose body is to have so many bytes."""
    return f"POST {service.path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode()


def a_slow_upload(service: Running) -> httpx.Response:
    with service.connect() as connection:
        connection.sendall(begun(service, 1000) + bytes(500))
        response = http.client.HTTPResponse(connection)
        response.begin()
        return httpx.Response(response.status, headers=response.getheaders(), content=response.read())


def a_dead_engine(service: Running) -> httpx.Response:
    service.engine.failure = RuntimeError(SECRET)
    for _ in range(3):
        service.post(image_file())
    eventually(lambda: service.service.state == "failed", "the service gives up")
    return service.post(image_file())


def an_upload_too_many(service: Running) -> httpx.Response:
    with service.connect() as connection:
        connection.sendall(begun(service, 1000) + bytes(500))
        service.wait_uploads(1)
        refused = service.post(image_file().ljust(2_000_000, b"x"))  # a small one needs no room
    service.wait_uploads(0)
    return refused


def a_full_memory(service: Running) -> httpx.Response:
    with service.connect() as connection:
        connection.sendall(begun(service, 1500) + bytes(1400))
        service.wait_uploads(1)
        time.sleep(0.1)
        refused = service.post(bytes(700))
    service.wait_uploads(0)
    assert service.post(image_file()).status_code == 200, "the room is released"
    return refused


def a_failing_engine(service: Running) -> httpx.Response:
    service.engine.failure = RuntimeError(SECRET)
    response = service.post(image_file())
    service.engine.failure = None
    assert service.post(image_file()).status_code == 200, "the next request is answered"
    return response


def an_engine_that_times_out(service: Running) -> httpx.Response:
    service.engine.failure = TimeoutError(SECRET)
    response = service.post(image_file())
    service.engine.failure = None
    return response


def an_engine_with_too_many_rows(service: Running) -> httpx.Response:
    service.engine.surplus = 1
    response = service.upload(*[("a.png", image_file())] * (3 if service.path == "/predict" else 1))
    service.engine.surplus = 0
    assert service.post(image_file()).status_code == 200, "the next request is answered"
    return response


def a_network_without_maps(service: Running) -> httpx.Response:
    service.engine.has_maps = False
    response = service.post(image_file())
    service.engine.has_maps = True
    return response


PNG = image_file()
JPEG = image_file(size=(300, 200), kind="JPEG")
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"></svg>'

CASES = [
    Case("garbage as multipart", 400, "bad-upload", multipart(b"this is no multipart body at all")),
    Case("an empty multipart body", 400, "bad-upload", multipart(b"")),
    Case("a multipart body of no parts", 400, "bad-upload", multipart(f"--{BOUNDARY}--\r\n".encode())),
    Case(
        "multipart without a boundary",
        400,
        "bad-upload",
        lambda service: service.post(PART + PNG + END, headers={"Content-Type": "multipart/form-data"}),
    ),
    Case(
        "multipart with a boundary of 5,000 characters",
        400,
        "bad-upload",
        lambda service: service.post(PART, headers={"Content-Type": f"multipart/form-data; boundary={'b' * 5000}"}),
    ),
    Case("multipart cut off within a file", 400, "bad-upload", multipart(PART + PNG[:50])),
    Case("multipart cut off within its headers", 400, "bad-upload", multipart(PART[:40])),
    Case(
        "multipart cut off within its second file",
        400,
        "bad-upload",
        multipart(PART + PNG + b"\r\n" + PART + PNG),
        paths=("/predict",),
    ),
    Case("multipart without its last boundary", 400, "bad-upload", multipart(PART + PNG)),
    Case("a part without a name", 400, "bad-upload", multipart(PART.replace(b'name="file"; ', b"") + PNG + END)),
    Case("a part of another name", 400, "bad-upload", multipart(PART.replace(b'"file"', b'"picture"') + PNG + END)),
    Case(
        "a text field named file",
        400,
        "bad-upload",
        lambda service: service.client.post(service.path, files=[("file", (None, "cat"))]),
    ),
    Case("an empty file", 400, "bad-upload", lambda service: service.upload(("a.png", b""))),
    Case("an empty body", 400, "bad-upload", raw(b"")),
    Case("an empty body of no type", 400, "bad-upload", lambda service: service.client.post(service.path)),
    Case(
        "a body over the limit by its Content-Length",
        413,
        "body-too-large",
        raw(bytes(20_001)),
        {"max_body_bytes": 20_000},
    ),
    Case(
        "a body over the limit that does not say so",
        413,
        "body-too-large",
        lambda service: service.client.post(service.path, content=chunks()),
        {"max_body_bytes": 20_000},
    ),
    Case(
        "multipart over the limit",
        413,
        "body-too-large",
        lambda service: service.upload(("a.png", bytes(20_001))),
        {"max_body_bytes": 20_000},
    ),
    Case(
        "multipart over the limit that does not say so",
        413,
        "body-too-large",
        lambda service: service.client.post(service.path, content=chunks_of_multipart(), headers=MULTIPART),
        {"max_body_bytes": 20_000},
    ),
    Case("more pixels than the limit", 413, "picture-too-large", raw(image_file(size=(40, 26))), {"max_pixels": 1039}),
    Case("3.6 gigapixels by the header", 413, "picture-too-large", raw(huge_png())),
    Case("one file too many", 413, "too-many-files", files(5), {"max_files": 4}),
    Case("far too many files", 413, "too-many-files", files(300), {"max_files": 4}),
    Case("plain text", 415, "unsupported-body", raw(b"cat", "text/plain")),
    Case("a form", 415, "unsupported-body", raw(b"file=cat", "application/x-www-form-urlencoded")),
    Case("JSON", 400, "bad-upload", raw(b"{}", "application/json")),
    Case("an unknown parameter", 422, "invalid-parameter", parameter("topk", "3")),
    Case(
        "a parameter in the form",
        422,
        "invalid-parameter",
        lambda service: service.upload(("a.png", b"cat"), data={"top_k": "3"}),
    ),
    Case("text that calls itself a picture", 415, "unsupported-picture", raw(b"cat")),
    Case("SVG", 415, "unsupported-picture", raw(SVG, "image/svg+xml")),
    Case("a text file as the one part", 415, "unsupported-picture", lambda service: service.upload(("a.png", b"cat"))),
    Case("a PNG cut off", 422, "unreadable-picture", raw(PNG[:-40])),
    Case("a JPEG cut off", 422, "unreadable-picture", raw(JPEG[: len(JPEG) // 2], "image/jpeg")),
    Case("a damaged header", 422, "unreadable-picture", raw(PNG[:8] + bytes(60))),
    Case("top_k of 0", 422, "invalid-top-k", parameter("top_k", "0")),
    Case("top_k below 0", 422, "invalid-top-k", parameter("top_k", "-3")),
    Case("top_k of 11 classes out of 10", 422, "invalid-top-k", parameter("top_k", "11")),
    Case("a model that is none", 404, "unknown-model", parameter("model", "resnet")),
    Case("an empty model", 404, "unknown-model", parameter("model", "")),
    Case("a label that is none", 422, "unknown-label", parameter("label", "cats"), paths=("/explain",)),
    Case("no label", 422, "unknown-label", parameter("label", ""), paths=("/explain",)),
    Case("a format that is none", 422, "invalid-parameter", parameter("format", "gif"), paths=("/explain",)),
    Case("two images to explain", 413, "too-many-files", files(2), paths=("/explain",)),
    Case("top_k in letters", 422, "invalid-parameter", parameter("top_k", "abc")),
    Case("an empty top_k", 422, "invalid-parameter", parameter("top_k", "")),
    Case("no view", 422, "invalid-parameter", parameter("views", "0")),
    Case("a confidence above 1", 422, "invalid-parameter", parameter("min_confidence", "1.1")),
    Case("an engine that raises", 500, "internal-error", a_failing_engine),
    Case("an engine that raises TimeoutError", 500, "internal-error", an_engine_that_times_out),
    Case("an engine that gives a row too many", 500, "internal-error", an_engine_with_too_many_rows),
    Case("a network without maps", 501, "not-explainable", a_network_without_maps, paths=("/explain",)),
    Case("a full queue", 503, "queue-full", a_full_queue, {"queue_size": 4, "max_files": 4}, retry_after=True),
    Case("a model that is still loading", 503, "not-ready", raw(PNG), retry_after=True, loading=True),
    Case("an engine that does not respond", 504, "deadline-passed", a_blocked_engine, {"timeout": 0.2}),
    Case(
        "an engine slower than X-Request-Timeout",
        504,
        "deadline-passed",
        lambda service: a_blocked_engine(service, {"X-Request-Timeout": "0.2"}),
    ),
    Case("a timeout of zero", 422, "invalid-parameter", no_time),
    Case("an upload that does not end", 408, "upload-too-slow", a_slow_upload, {"timeout": 0.2}),
    Case("one upload too many", 503, "too-many-uploads", an_upload_too_many, {"max_uploads": 1}, retry_after=True),
    Case(
        "bodies beyond the memory limit",
        503,
        "too-many-uploads",
        a_full_memory,
        {"max_body_bytes": 2000, "max_held_bytes": 2000},
        retry_after=True,
    ),
    Case("no API key", 401, "unauthorized", raw(PNG), {"api_keys": ("secret",)}),
    Case("an engine that fails again and again", 503, "not-alive", a_dead_engine, retry_after=True, ends=True),
]


def is_a_problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """Assert that a response is a well-formed problem, and give it."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "instance"}
    assert problem["status"] == status
    assert problem["title"]
    assert len(problem["detail"]) > 10
    assert problem["instance"] == response.headers["X-Request-ID"]
    assert "total;dur=" in response.headers["Server-Timing"]
    return problem


@pytest.mark.parametrize(
    ("case", "path"),
    [(case, path) for case in CASES for path in case.paths],
    ids=lambda part: part if isinstance(part, str) else part.name,
)
def test_a_failed_request_gets_its_problem(case: Case, path: str) -> None:
    loaded = threading.Event()
    engine = FakeEngine()

    def load() -> Classifier:
        if case.loading:
            loaded.wait(20)
        return fake_classifier(engine)

    with serving(engine, load=load, wait_ready=not case.loading, **case.settings) as service:
        service.path = path
        response = case.provoke(service)
        loaded.set()
        problem = is_a_problem(response, case.status)
        assert problem["type"] == f"urn:tenfold:{case.kind}"
        if case.retry_after:
            assert int(response.headers["Retry-After"]) >= 1
        else:
            assert "Retry-After" not in response.headers
        assert SECRET not in response.text
        assert "Traceback" not in response.text
        service.wait_admitted(0)
        if not case.loading:
            assert service.client.get("/readyz").status_code == (503 if case.ends else 200)


def test_an_internal_error_names_only_the_request(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as service:
        response = a_failing_engine(service)
    problem = is_a_problem(response, 500)
    assert problem["instance"] in problem["detail"]
    assert "RuntimeError" not in response.text
    assert SECRET in caplog.text, "the log has what the client does not see"
    assert problem["instance"] in caplog.text


def test_an_unknown_path_is_a_problem(running: Running) -> None:
    assert is_a_problem(running.client.get("/nowhere"), 404)["title"] == "Not Found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", "OPTIONS, POST"),
        ("DELETE", "/model", "GET, HEAD, OPTIONS"),
        ("POST", "/readyz", "GET, HEAD, OPTIONS"),
    ],
)
def test_an_unsupported_method_is_a_problem_that_names_the_right_ones(
    running: Running, method: str, path: str, allowed: str
) -> None:
    response = running.client.request(method, path)
    problem = is_a_problem(response, 405)
    assert problem["title"] == "Method Not Allowed"
    assert problem["detail"] == f"this path takes {allowed}: send the request with one of these methods"
    assert response.headers["Allow"] == allowed
    response = running.client.options(path)
    assert (response.status_code, response.headers["Allow"], response.content) == (204, allowed, b"")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("views", value) for value in ("0", "-1", str(MAX_VIEWS + 1), "x", "1.5", "")),
        *(("min_confidence", value) for value in ("-0.1", "1.1", "nan", "inf", "-inf", "x", "")),
    ],
)
def test_a_parameter_out_of_range_or_malformed_is_refused_by_its_name(running: Running, name: str, value: str) -> None:
    seen = running.engine.views
    problem = is_a_problem(running.post(photo(), params={name: value}), 422)
    assert problem["type"] == "urn:tenfold:invalid-parameter"
    assert problem["detail"].startswith(f"{name} is {value!r}: send a")
    assert running.engine.views == seen, "nothing was computed"


def test_details_say_what_to_do(running: Running) -> None:
    for send, says in (
        (raw(b""), "send an image"),
        (raw(b"cat", "text/plain"), "send multipart/form-data"),
        (raw(b"cat"), "upload JPEG"),
        (parameter("top_k", "11"), "choose 1 to 10"),
    ):
        assert says in send(running).json()["detail"]


def test_retry_after_is_a_whole_second_or_more() -> None:
    for seconds, header in ((0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (41.5, "42")):
        assert problem_response(QueueFull("full", seconds), "id").headers["Retry-After"] == header
    for error in (NotReady("loading"), NotAlive("stalled")):
        assert int(problem_response(error, "id").headers["Retry-After"]) >= 1


def test_a_derived_error_is_reported_as_its_base_class() -> None:
    class Torn(UnreadableImage):
        pass

    assert problem_of(Torn("torn: send another"), "id").type == "urn:tenfold:unreadable-picture"


def test_every_error_of_the_table_is_provoked_by_a_case() -> None:
    # In tests/app/http/routes: test_v2.py, test_admin.py and test_feedback.py.
    elsewhere = (
        InvalidInference,
        SwapRefused,
        SwapConflict,
        SwapInterrupted,
        UnknownPrediction,
        RequestIDReused,
        NotStored,
    )
    slugs = {kind.slug for cls, kind in TABLE.items() if cls not in elsewhere}
    assert slugs == {case.kind for case in CASES}


def test_every_image_error_of_the_model_is_in_the_table() -> None:
    assert all(cls in TABLE for cls in ImageError.__subclasses__() if cls.__module__ == "model.errors")


def test_routes_may_have_an_error_format_of_their_own() -> None:
    def plain(error: Exception, request_id: str) -> Response:
        return Response(f"{error} {request_id}", 400)

    errors = Errors({"/v2": plain, "/v2/other": problem_response})
    paths = ("/v2/models", "/v2", "/v2/other/x", "/predict", "/v2x")
    scopes = [{"path": path, "state": {"request_id": "id"}} for path in paths]
    responses = [errors.response(scope, QueueFull("full", 1.0)) for scope in scopes]
    assert [response.status_code for response in responses] == [400, 400, 503, 503, 503]
    assert responses[0].body == b"full id"
    assert {scope["state"]["rejected"] for scope in scopes} == {"queue-full"}  # type: ignore[index]
