from collections.abc import Iterator

import pytest

from tests.app.fakes import CARD, image_file
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Running, serving

KEYS = ("first-key", "second-key")
GUARDED = [
    ("POST", "/predict"),
    ("POST", "/explain"),
    ("GET", "/models"),
    ("GET", f"/models/{CARD.name}"),
    ("GET", "/model"),
    ("GET", "/metrics"),
    ("GET", "/drift"),
]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    with serving(api_keys=KEYS) as service:
        yield service


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_accepted_in_either_header(guarded: Running, method: str, path: str, key: str) -> None:
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer {key}"},
        {"X-API-Key": key},
        {"X-API-Key": key, "Authorization": "Bearer token-of-a-proxy"},
        {"X-API-Key": key, "Authorization": "Basic dTpw"},
        {"X-API-Key": "key-of-a-proxy", "Authorization": f"Bearer {key}"},
    ):
        assert guarded.client.request(method, path, content=image_file(), headers=headers).status_code == 200


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer third-key"},
        {"Authorization": "Bearer first-key second-key"},
        {"Authorization": "Bearer first-ke"},
        {"Authorization": "Bearer first-keyx"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "first-key"},
        {"X-API-Key": ""},
        {"X-API-Key": "FIRST-KEY"},
        {"X-API-Key": "first-key,second-key"},
        {"X-API-Key": "third-key", "Authorization": "Bearer third-key"},
        {"X-API-Key": b"\xff\xfe"},
    ],
    ids=str,
)
def test_anything_else_is_refused(guarded: Running, method: str, path: str, headers: dict[str, str]) -> None:
    seen = guarded.engine.views
    response = guarded.client.request(method, path, content=image_file(), headers=headers)
    problem = is_a_problem(response, 401)
    assert problem["type"] == "urn:tenfold:unauthorized"
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert not any(key in response.text for key in KEYS)
    assert guarded.engine.views == seen


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz"])
def test_probes_need_no_key(guarded: Running, path: str) -> None:
    assert guarded.client.get(path).status_code == 200


def test_the_body_is_not_read_before_the_key_is_checked(guarded: Running) -> None:
    with guarded.connect() as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_without_keys_none_is_needed(running: Running) -> None:
    assert running.post(image_file(), headers={"Authorization": "Bearer whatever"}).status_code == 200


def test_the_headers_of_a_key_are_documented_if_keys_are_set(guarded: Running, running: Running) -> None:
    assert "securitySchemes" not in running.client.get("/openapi.json").json()["components"]
    schema = guarded.client.get("/openapi.json").json()
    assert set(schema["components"]["securitySchemes"]) == {"HTTPBearer", "APIKeyHeader"}
    guarded_paths = {path for path, entry in schema["paths"].items() for each in entry.values() if each.get("security")}
    assert {path for path in guarded_paths if not path.startswith("/v2")} == {
        path.replace(CARD.name, "{name}") for _, path in GUARDED
    }
    open_paths = {path for path in schema["paths"] if path.startswith("/v2")} - guarded_paths
    assert {path.rsplit("/", 1)[1] for path in open_paths} == {"live", "ready"}
