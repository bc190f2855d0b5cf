"""POST /models/NAME and what belongs to it, with real bundles."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import model
from app.cli.main import app as tenfold
from tests.app.another_program import another_program
from tests.app.fakes import CARD, image_file
from tests.app.http.routes.test_v2 import images
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Running, eventually, serving

KEY = {"X-API-Key": "admin"}
ROUTES = [
    ("POST", "/models/tiny"),
    ("POST", "/models/tiny/rollback"),
    ("POST", "/models/tiny/confirm"),
    ("GET", "/models/tiny/swap"),
    ("DELETE", "/models/tiny/swap"),
]


@pytest.fixture(scope="module")
def root(int8_bundle: Path, float16_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two bundles of one name, and one that is corrupt."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(int8_bundle, root / "int8")
    shutil.copytree(float16_bundle, root / "float16")
    shutil.copytree(int8_bundle, root / "corrupt")
    with (root / "corrupt" / "openvino.bin").open("r+b") as file:
        file.write(b"\1\2\3")
    return root


@pytest.fixture
def service(root: Path) -> Iterator[Running]:
    load = partial(model.load, root / "int8", device="cpu", threads=1)
    keys: dict[str, Any] = {"admin_keys": ("admin",), "api_keys": ("user",)}
    with serving(load=load, name="tiny", weights_root=root, device="cpu", threads=1, **keys) as running:
        running.client.headers.update(KEY)
        yield running


def change(service: Running, path: str = "", **body: Any) -> httpx.Response:
    return service.client.post(f"/models/tiny{path}", json=body)


def versions(service: Running) -> set[str]:
    """The version of the model, by everything that names it."""
    client = service.client
    (status,) = client.get("/models").json()["models"]
    inferred = client.post("/v2/models/tiny-image/infer", json=images(image_file())).json()
    described = client.get("/v2/models/tiny").json()
    (indexed, _) = client.post("/v2/repository/index").json()
    found = {int(each) for each in (inferred["model_version"], *described["versions"], indexed["version"])}
    return {
        status["version"],
        client.get("/model").json()["version"],
        client.get("/models/tiny").json()["version"],
        client.get("/model?fields=version").json()["version"],
        service.post(image_file()).json()["model"]["version"],
        *(f"{version:012x}" for version in found),
        *(
            line.partition('version="')[2][:12]
            for line in client.get("/metrics").text.splitlines()
            if line.startswith("tenfold_model_info{")
        ),
    }


def test_everything_that_names_the_version_follows(service: Running, root: Path) -> None:
    old, new = (model.read_card(root / name / model.CARD_FILE).version for name in ("int8", "float16"))
    assert versions(service) == {old}
    response = change(service, weights="float16")
    assert response.status_code == 200
    report = response.json()
    assert report == {
        "model": "tiny", "action": "swap", "state": "done", "version": new, "previous": old, "reason": "",
        "shadow": None,
    }  # fmt: skip
    assert service.client.get("/models/tiny/swap").json() == report
    assert versions(service) == {new}
    assert change(service, "/rollback").json()["version"] == old
    assert versions(service) == {old}
    assert is_a_problem(change(service, "/confirm"), 409)["type"] == "urn:tenfold:swap-conflict"
    change(service, weights="float16")
    assert change(service, "/confirm").json()["previous"] is None
    assert is_a_problem(change(service, "/rollback"), 409)["type"] == "urn:tenfold:swap-conflict"
    assert service.client.get("/readyz").status_code == 200


def test_a_bundle_that_fails_is_refused_with_its_reason(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    before = versions(service)
    problem = is_a_problem(change(service, weights="corrupt"), 422)
    assert problem["type"] == "urn:tenfold:swap-refused"
    assert "openvino.bin does not have the SHA-256 on its card" in problem["detail"]
    assert problem["detail"] in caplog.text
    assert service.client.get("/models/tiny/swap").json()["reason"] == problem["detail"]
    assert 'tenfold_swaps_total{model="tiny",outcome="refused"} 1.0' in service.client.get("/metrics").text
    assert versions(service) == before
    for weights in ("../outside", "none", "int8/card.json"):
        problem = is_a_problem(change(service, weights=weights), 422)
        assert problem["type"] == "urn:tenfold:swap-refused"
        report = service.client.get("/models/tiny/swap").json()
        assert (report["state"], report["reason"]) == ("refused", problem["detail"])


@pytest.mark.parametrize(
    "body",
    [
        {"weight": "float16"},
        {"weights": ""},
        {"weights": 1},
        {"weights": "float16", "shadow": 0},
        {"weights": "float16", "shadow": 1.1},
        {"weights": "float16", "shadow": "0.1"},
        {"weights": "float16", "shadow": 0.1, "images": 0},
        {"weights": "float16", "shadow": 0.1, "seconds": 0},
        {"weights": "float16", "shadow": 0.1, "agreement": 2},
        [],
    ],
    ids=str,
)
def test_a_malformed_body_is_refused_by_its_field(service: Running, body: Any) -> None:
    problem = is_a_problem(service.client.post("/models/tiny", json=body), 422)
    assert problem["type"] == "urn:tenfold:invalid-parameter"
    assert (list(body)[-1] if body else "the body is not a JSON object") in problem["detail"]


def test_a_large_body_is_refused(service: Running) -> None:
    assert "of 1 to 4,096 characters" in is_a_problem(change(service, weights="a" * 4_097), 422)["detail"]
    assert is_a_problem(change(service, weights="a" * 10_000), 413)["type"] == "urn:tenfold:body-too-large"
    assert is_a_problem(service.client.post("/models/tiny", content=b"{"), 422)


def test_a_model_that_is_none_is_unknown(service: Running) -> None:
    for method, path in ROUTES:
        response = service.client.request(method, path.replace("tiny", "none"))
        assert is_a_problem(response, 404)["type"] == "urn:tenfold:unknown-model"


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("key", ["", "user", "admin2"])
def test_an_admin_key_is_needed(service: Running, method: str, path: str, key: str) -> None:
    response = service.client.request(method, path, json={"weights": "float16"}, headers={"X-API-Key": key})
    assert "admin key" in is_a_problem(response, 401)["detail"]
    bearer = {"Authorization": "Bearer admin", "X-API-Key": ""}
    assert service.client.get("/models/tiny/swap", headers=bearer).status_code == 200


def test_an_admin_key_is_accepted_as_an_api_key_and_not_the_reverse(service: Running) -> None:
    for key, status in (("admin", 200), ("user", 200), ("none", 401)):
        response = service.client.post("/predict", content=image_file(), headers={"X-API-Key": key})
        assert response.status_code == status


def test_without_admin_keys_the_routes_do_not_exist(running: Running) -> None:
    for method, path in ROUTES:
        response = running.client.request(method, path.replace("tiny", CARD.name), headers=KEY)
        if path == "/models/tiny":  # of GET, which needs no admin key
            assert is_a_problem(response, 405)["detail"].startswith("this path takes GET")
        else:
            is_a_problem(response, 404)
    paths = running.client.get("/openapi.json").json()["paths"]
    assert "post" not in paths["/models/{name}"]
    assert not [path for path in paths if path.endswith(("/swap", "/rollback", "/confirm"))]


def test_the_routes_are_documented(service: Running) -> None:
    schema = service.client.get("/openapi.json").json()
    common = {"200", "401", "404"}
    for path, method, statuses in (
        ("/models/{name}", "post", common | {"408", "409", "413", "422", "503", "504"}),
        ("/models/{name}/rollback", "post", common | {"409", "422", "503"}),
        ("/models/{name}/confirm", "post", common | {"409", "422", "503"}),
        ("/models/{name}/swap", "get", common),
        ("/models/{name}/swap", "delete", common | {"409", "503"}),
    ):
        assert set(schema["paths"][path][method]["responses"]) == statuses
    body = schema["paths"]["/models/{name}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"weights", "shadow", "images", "seconds", "agreement"}


def test_new_weights_are_compared_on_live_images(service: Running) -> None:
    swap = service.in_background(
        lambda: service.client.post(
            "/models/tiny", json={"weights": "float16", "shadow": 1, "images": 20, "agreement": 0}, timeout=100
        )
    )
    seed = 0
    while not swap.done:
        service.post(image_file(seed := seed + 1))
    report = swap.result().json()
    assert report["state"] == "done"
    assert report["shadow"]["images"] >= 20
    assert 0 < report["shadow"]["serving"]["mean_confidence"] <= 1
    assert 0 <= report["shadow"]["candidate"]["accepted"] <= 1
    assert report == service.client.get("/models/tiny/swap").json()


def test_a_swap_continues_when_its_client_disconnects(service: Running, root: Path) -> None:
    new = model.read_card(root / "float16" / model.CARD_FILE).version
    with pytest.raises(httpx.ReadTimeout):
        service.client.post("/models/tiny", json={"weights": "float16"}, timeout=0.01)
    eventually(lambda: versions(service) == {new}, "the new version is served", seconds=60)


def reload(service: Running, *arguments: str, key: str = "admin") -> tuple[int, str]:
    """Exit code and output of tenfold reload."""
    command = ["reload", *arguments, "--url", f"http://127.0.0.1:{service.port}"]
    result = CliRunner().invoke(tenfold, command, env={"TENFOLD_ADMIN_KEY": key})
    return result.exit_code, result.output


def test_the_command_swaps_rolls_back_and_confirms(service: Running, root: Path) -> None:
    old, new = (model.read_card(root / name / model.CARD_FILE).version for name in ("int8", "float16"))
    code, text = reload(service, "float16")
    assert code == 0
    assert f"tiny: version {new} is served\nversion {old} stays loaded" in text
    assert reload(service, "--rollback", "--model", "tiny")[0] == 0
    assert versions(service) == {old}
    code, text = reload(service, "--confirm")
    assert code == 1
    assert "not changed: tiny has no previous version" in text


@pytest.mark.parametrize(
    ("arguments", "key", "code", "says"),
    [
        (["corrupt"], "admin", 1, "not changed: "),
        (["float16"], "user", 2, "does not accept this key: give another --admin-key"),
        (["float16"], "", 2, "requires an admin key: give one with --admin-key"),
        (["float16", "--model", "none"], "admin", 2, "there is no model 'none'"),
        (["float16", "--rollback"], "admin", 2, "alone"),
        (["float16", "--images", "3"], "admin", 2, "--shadow too"),
        (["float16", "--shadow", "2"], "admin", 1, "shadow is 2.0: send a number above 0 and of at most 1"),
    ],
)
def test_the_command_says_what_is_wrong(service: Running, arguments: list[str], key: str, code: int, says: str) -> None:
    found, text = reload(service, *arguments, key=key)
    assert (found, says in text) == (code, True), text
    assert "Traceback" not in text


def test_the_command_says_that_a_service_has_no_admin_keys_or_cannot_be_reached(running: Running) -> None:
    for option in ("float16", "--rollback", "--confirm"):
        code, text = reload(running, option)
        assert code == 2
        assert "set TENFOLD_ADMIN_KEYS" in text
    result = CliRunner().invoke(tenfold, ["reload", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 2
    assert "cannot be reached" in result.output


@pytest.mark.parametrize(
    ("arguments", "status", "body"),
    [
        (["float16"], 404, b""),
        (["float16", "--model", "tiny"], 404, b'{"detail": "Not Found"}'),
        (["float16", "--model", "tiny"], 200, b"{}"),
        (["float16", "--model", "tiny"], 200, b"<html>"),
    ],
)
def test_the_command_recognises_another_program(arguments: list[str], status: int, body: bytes) -> None:
    with another_program((status, {}, body)) as program:
        result = CliRunner().invoke(tenfold, ["reload", *arguments, "--url", program.url])
    assert (result.exit_code, "is not a Tenfold service" in result.output) == (2, True), result.output
