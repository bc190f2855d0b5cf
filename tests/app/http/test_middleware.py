import logging
import re

import pytest

from tests.app.fakes import image_file
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Running, eventually, serving

NEW_ID = re.compile(r"[0-9a-f]{32}")


@pytest.mark.parametrize("given", ["abc", "A-b_c.9", "7", "x" * 64])
def test_a_valid_request_id_is_returned(running: Running, given: str) -> None:
    assert running.client.get("/livez", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"two words",
        b"x" * 65,
        b"x" * 200,
        "ключ".encode(),
        b"\xff\xfe",
        b"a\tb",
        b'a"b',
        b"a;b",
        b"../../etc",
        b"%0a",
    ],
    ids=["empty", "space", "65", "200", "unicode", "no UTF-8", "tab", "quote", "semicolon", "path", "percent"],
)
def test_a_hostile_request_id_is_replaced(running: Running, given: bytes) -> None:
    response = running.client.get("/livez", headers=[(b"X-Request-ID", given)])
    assert NEW_ID.fullmatch(response.headers["X-Request-ID"])


def test_request_ids_are_unique(running: Running) -> None:
    ids = {running.client.get("/livez").headers["X-Request-ID"] for _ in range(20)}
    assert len(ids) == 20
    assert all(NEW_ID.fullmatch(one) for one in ids)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/livez", 200),
        ("HEAD", "/readyz", 200),
        ("HEAD", "/model", 200),
        ("HEAD", "/metrics", 200),
        ("HEAD", "/openapi.json", 200),
        ("HEAD", "/predict", 405),
        ("GET", "/model", 200),
        ("GET", "/docs", 200),
        ("GET", "/openapi.json", 200),
        ("POST", "/predict", 400),
        ("POST", "/predict?top_k=x", 422),
        ("GET", "/nowhere", 404),
        ("PUT", "/predict", 405),
    ],
)
def test_every_response_carries_its_id_and_timing(running: Running, method: str, path: str, status: int) -> None:
    response = running.client.request(method, path, headers={"X-Request-ID": "mine"})
    assert response.status_code == status
    assert response.headers.get_list("X-Request-ID") == ["mine"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert re.fullmatch(r"(\w+;dur=\d+\.\d, )*total;dur=\d+\.\d", response.headers["Server-Timing"])


def test_the_access_log_has_a_line_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tenfold.access")
    with serving() as service:
        caplog.clear()
        service.post(image_file(), headers={"X-Request-ID": "first"})
        service.client.get("/nowhere?secret=1", headers={"X-Request-ID": "second"})
        eventually(lambda: "second" in caplog.text, "both requests are logged")
    first, second = (record.getMessage() for record in caplog.records if record.name == "tenfold.access")
    assert re.fullmatch(r"POST /predict 200 \d+\.\dms id=first", first)
    assert re.fullmatch(r"GET /nowhere 404 \d+\.\dms id=second", second)


PROBES = ("/livez", "/readyz", "/healthz", "/metrics", "/v2/health/live", "/v2/health/ready")


@pytest.mark.parametrize("log_probes", [False, True])
def test_successful_probes_are_logged_only_if_a_setting_says_so(
    log_probes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tenfold.access")
    with serving(log_probes=log_probes, drain_delay=60.0) as service:
        caplog.clear()
        for path in PROBES:
            assert service.client.get(path).status_code == 200
            assert service.client.head(path).status_code == 200
        service.service.drain()
        assert service.client.get("/readyz").status_code == 503
        service.client.get("/model", headers={"X-Request-ID": "last"})
        eventually(lambda: "last" in caplog.text, "all requests are logged")
    lines = [record.getMessage().split(" ")[:3] for record in caplog.records if record.name == "tenfold.access"]
    probes = [[method, path, "200"] for path in PROBES for method in ("GET", "HEAD")] if log_probes else []
    assert lines == [*probes, ["GET", "/readyz", "503"], ["GET", "/model", "200"]]


def test_a_path_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tenfold.access")
    with serving() as service:
        caplog.clear()
        service.client.get("/a%0aGET%20/model%20200", headers={"X-Request-ID": "forger"})
        eventually(lambda: "forger" in caplog.text, "the request is logged")
    (line,) = (record.getMessage() for record in caplog.records if record.name == "tenfold.access")
    assert "\n" not in line
    assert "/a%0AGET%20/model%20200 404" in line


def test_a_body_of_exactly_the_limit_is_read() -> None:
    data = image_file()
    with serving(max_body_bytes=len(data)) as service:
        assert service.post(data).status_code == 200
        assert service.post(data + b"x").status_code == 413


def test_a_body_over_the_limit_is_refused_before_it_is_sent() -> None:
    with serving(max_body_bytes=1000) as service, service.connect() as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_the_size_of_a_body_that_is_not_read_does_not_matter() -> None:
    with serving(max_body_bytes=10) as service:
        assert service.client.request("GET", "/livez", content=bytes(100)).status_code == 200


def test_connections_are_kept_alive_until_the_service_drains() -> None:
    with serving(drain_delay=60.0) as service:
        assert "Connection" not in service.post(image_file()).headers
        service.service.drain()
        for response in (service.post(image_file()), service.client.get("/readyz"), service.client.get("/nowhere")):
            assert response.headers["Connection"] == "close"


@pytest.mark.parametrize("path", ["/models/", "/models%2F", "/models//", "/models%2f%2F/"])
def test_slashes_at_the_end_of_a_path_are_redirected_once(running: Running, path: str) -> None:
    response = running.client.get(path, follow_redirects=True)
    assert (response.status_code, response.url.path, len(response.history)) == (200, "/models", 1)


def test_only_allowed_hosts_are_served() -> None:
    with serving(allowed_hosts=("a.example", "*.b.example", "[::1]")) as service:

        def status(host: str, path: str = "/models") -> int:
            return service.client.get(path, headers={"Host": host}).status_code

        assert [status(host) for host in ("a.example", "A.example:8000", "x.b.example", "[::1]:80")] == [200] * 4
        refused = ("b.example", "x.a.example", "evil.example", "127.0.0.1", "x.b.example.evil", "")
        assert [status(host) for host in refused] == [400] * len(refused)
        assert status("127.0.0.1", "/livez") == 200
        response = service.client.post("/predict", content=image_file(), headers={"Host": "evil.example"})
        assert is_a_problem(response, 400)["detail"].startswith("This Host is not in TENFOLD_ALLOWED_HOSTS")


@pytest.mark.parametrize("path", ["/livez%0A", "/metrics%0a", "/models%0A", "/predict%0A", "/v2%0A", "/%0A"])
def test_a_line_break_is_no_part_of_a_path(path: str, running: Running) -> None:
    assert running.client.get(path).status_code == 404
    assert running.client.post(path, content=image_file()).status_code == 404
