"""Behind nginx and HAProxy, which end TLS and have the service below a path prefix, kept in the paths or removed."""

import logging
import re
from collections.abc import Iterator
from functools import partial
from urllib.parse import urljoin

import httpx
import pytest

from app.http.problems import MEDIA_TYPE
from tests.app.fakes import CARD, image_file
from tests.app.http.test_problems import is_a_problem
from tests.app.proxies import PREFIX, REDIRECT, REPLACE_PATH, proxied
from tests.app.running import ROOT, Running, eventually, serving


@pytest.fixture(scope="module", params=[False, True], ids=["removed", "kept"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A service, for proxies that remove the prefix without any setting."""
    store = tmp_path_factory.mktemp("feedback") / "store"
    with serving(feedback=store, root_path=PREFIX if request.param else "") as running:
        yield running


@pytest.fixture(scope="module", params=["nginx", "haproxy"])
def url(request: pytest.FixtureRequest, service: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of the service behind a proxy."""
    keeps = bool(service.service.settings.root_path)
    with proxied(request.param, service.port, tmp_path_factory.mktemp("proxy"), keeps=keeps) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, verify=False, timeout=20) as client:
        yield client


def test_the_pages_and_all_that_they_link_to_are_below_the_prefix(client: httpx.Client, url: str) -> None:
    bare = client.get(url.rstrip("/"), follow_redirects=True)
    assert (bare.status_code, str(bare.url)) == (200, url)
    for page in ("", "docs"):
        response = client.get(page)
        assert response.status_code == 200
        links = re.findall(r'(?:href|src)="([^#"][^"]*)"', response.text)
        assert links
        for link in links:
            address = urljoin(str(response.url), link)
            assert address.startswith(url), link
            assert client.get(address).status_code == 200, link
    address = urljoin(f"{url}docs", "openapi.json")
    schema = client.get(address).json()
    server = urljoin(address, schema["servers"][0]["url"]).rstrip("/")
    assert f"{server}/" == url
    for path in ("/livez", "/models", "/drift", "/v2"):
        assert "get" in schema["paths"][path]
        assert client.get(server + path).status_code == 200


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("docs/", "docs"),
        ("models/", "models"),
        ("model/?fields=name,labels", "model?fields=name,labels"),
        (f"models/{CARD.name}/", f"models/{CARD.name}"),
        ("v2/models/a%20b:c/", "v2/models/a%20b:c"),
    ],
)
def test_redirects_stay_below_the_prefix(client: httpx.Client, url: str, path: str, location: str) -> None:
    response = client.get(path)
    assert response.status_code == 307
    assert urljoin(str(response.url), response.headers["Location"]) == url + location
    assert "://" not in response.headers["Location"]


def test_images_are_classified_and_their_feedback_is_stored(client: httpx.Client) -> None:
    def stored(request_id: str) -> bool:
        given = {"request_id": request_id, "label": "cat"}
        return client.post("feedback", json=given).status_code == 200

    for path in ("predict", "predict/", "explain"):
        response = client.post(path, files={"file": ("cat.png", image_file())})
        assert response.status_code == 200, path
        eventually(partial(stored, response.headers["X-Request-ID"]), "the label is stored")


def test_errors_have_the_format_of_their_protocol(client: httpx.Client) -> None:
    problem = is_a_problem(client.post("predict", content=b"text", headers={"Content-Type": "text/plain"}), 415)
    assert problem["type"] == "urn:tenfold:unsupported-body"
    assert is_a_problem(client.get("nowhere"), 404)["type"] == "about:blank"
    for method, path, status in (
        ("GET", "v2/models/none", 404),
        ("POST", "v2/models/none/infer", 404),
        ("POST", f"v2/models/{CARD.name}/infer", 400),
        ("GET", "v2/nowhere", 404),
        ("DELETE", "v2", 405),
    ):
        response = client.request(method, path, content=b"{")
        assert (response.status_code, list(response.json())) == (status, ["error"]), path
        assert response.headers["Content-Type"] != MEDIA_TYPE


def test_metrics_and_access_log_have_the_paths_below_the_prefix(
    client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tenfold.access")
    client.post("predict", content=image_file(), headers={"X-Request-ID": "logged"})
    eventually(lambda: "logged" in caplog.text, "the request is logged")
    assert re.search(r"POST /predict 200 \d+\.\dms id=logged", caplog.text)
    text = client.get("metrics").text
    assert 'route="/predict"' in text
    assert PREFIX not in text


def test_the_service_is_still_served_at_its_root(service: Running) -> None:
    """For probes, which come past the proxy."""
    assert service.client.get("/readyz").status_code == 200
    assert service.post(image_file()).status_code == 200
    path = "/models/" if service.service.settings.root_path else f"{PREFIX}/models"
    assert service.client.get(path).status_code == (307 if path == "/models/" else 404)


def test_a_prefix_may_be_the_beginning_of_a_path_of_the_service() -> None:
    with serving(root_path="/model") as service:
        for path in ("/model/model", "/model/models", "/models", "/model/livez"):
            assert service.client.get(path).status_code == 200, path
        response = service.client.get("/model")
        assert (response.status_code, response.headers["Location"]) == (307, "./model/")


def test_the_rules_of_the_proxies_are_documented() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    for rule in (REPLACE_PATH, REDIRECT, "TENFOLD_ROOT_PATH="):
        assert rule.replace(PREFIX, "/tenfold") in text
