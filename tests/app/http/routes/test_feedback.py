"""POST /feedback: labels of predictions, over the wire."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.feedback.store import NONE, Store
from tests.app.fakes import CARD, LABELS, image_file, photo
from tests.app.http.test_problems import is_a_problem
from tests.app.running import Running, serving
from tests.app.telemetry.test_metrics import MODEL, samples


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("feedback") / "store"


@pytest.fixture(scope="module")
def kept(path: Path) -> Iterator[Running]:
    """A service that stores predictions with their images."""
    with serving(feedback=path, feedback_images=True) as running:
        yield running


def send(service: Running, **body: object) -> httpx.Response:
    return service.client.post("/feedback", json=body)


def test_a_label_is_stored_with_its_prediction(kept: Running) -> None:
    response = kept.post(image_file(1))
    request_id = response.headers["X-Request-ID"]
    (result,) = response.json()["results"]
    best = result["top_k"][0]
    answer = send(kept, request_id=request_id, label=best["label"])
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": request_id,
        "index": 0,
        "model": {"name": CARD.name, "version": CARD.version},
        "predicted": best["label"],
        "confidence": best["probability"],
        "label": best["label"],
        "right": True,
    }
    other = next(label for label in LABELS if label != best["label"])
    assert send(kept, request_id=request_id, label=other.upper(), model=CARD.name).json()["right"] is False


def test_an_image_may_show_none_of_the_classes_and_a_label_can_be_removed(kept: Running, path: Path) -> None:
    request_id = kept.post(image_file(4)).headers["X-Request-ID"]

    def stored() -> list[str | None]:
        with Store(path) as store:
            return [row.label for row in store.labelled() if row.request_id == request_id]

    answer = send(kept, request_id=request_id, label="None of these").json()
    assert (answer["label"], answer["right"]) == ("none of these", False)
    assert stored() == [NONE]
    answer = send(kept, request_id=request_id, label=None).json()
    assert (answer["label"], answer["right"]) == (None, False)
    assert stored() == []
    problem = is_a_problem(send(kept, request_id=request_id, label="spaceship"), 422)
    assert problem["detail"].endswith("truck, or 'none of these'")


def test_each_image_of_a_request_has_a_label_of_its_own(kept: Running, path: Path) -> None:
    response = kept.upload(("a", image_file(2)), ("b", b"cat"), ("c", photo()), headers={"X-Request-ID": "mine"})
    results = response.json()["results"]
    for index in (0, 2):
        found = send(kept, request_id="mine", index=index, label="frog").json()
        assert (found["index"], found["predicted"]) == (index, results[index]["top_k"][0]["label"])
    assert send(kept, request_id="mine", index=1, label="frog").status_code == 404, "it could not be classified"
    with Store(path) as store:
        stored = [(row.position, row.label, row.image) for row in store.labelled() if row.request_id == "mine"]
    assert stored == [(0, "frog", image_file(2)), (2, "frog", photo())]


def test_a_reused_request_id_keeps_the_first_prediction_and_its_label(kept: Running, path: Path) -> None:
    headers = {"X-Request-ID": "reused"}
    first = kept.post(image_file(11), headers=headers).json()["results"][0]["top_k"][0]["label"]
    assert send(kept, request_id="reused", label=first).json()["right"] is True
    kept.post(image_file(11), headers=headers)
    assert send(kept, request_id="reused", label=first).status_code == 200, "the same request, sent again"
    other = next(
        seed for seed in range(12, 30) if kept.post(image_file(seed)).json()["results"][0]["top_k"][0]["label"] != first
    )
    assert kept.post(image_file(other), headers=headers).headers["X-Request-ID"] == "reused"
    problem = is_a_problem(send(kept, request_id="reused", label="ship"), 409)
    assert problem["type"] == "urn:tenfold:request-id-reused"
    with Store(path) as store:
        stored = [row for row in store.labelled() if row.request_id == "reused"]
    assert [(row.predicted, row.label, row.image) for row in stored] == [(first, first, image_file(11))]


def test_an_explained_image_can_be_labelled(kept: Running) -> None:
    response = kept.client.post("/explain", content=image_file(3))
    assert send(kept, request_id=response.headers["X-Request-ID"], label="cat").status_code == 200


def test_the_first_label_of_an_image_is_counted(path: Path, tmp_path: Path) -> None:
    with serving(feedback=tmp_path / "store") as service:
        names = {
            outcome: f"tenfold_feedback_total{MODEL}{{outcome={outcome}}}" for outcome in ("right", "wrong", "none")
        }
        assert [samples(service)[name] for name in names.values()] == [0, 0, 0]
        for seed in range(4):
            response = service.post(image_file(seed))
            predicted = response.json()["results"][0]["top_k"][0]["label"]
            label = predicted if seed else next(label for label in LABELS if label != predicted)
            label = "none of these" if seed == 3 else label
            for _ in range(2):
                send(service, request_id=response.headers["X-Request-ID"], label=label)
        assert [samples(service)[name] for name in names.values()] == [2, 1, 1]
        with Store(tmp_path / "store") as store:
            assert [row.image for row in store.labelled()] == [None] * 4, "images are not stored by default"


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"request_id": "nothing", "label": "cat"}, 404, "unknown-prediction"),
        ({"request_id": "known", "label": "cat", "model": "other"}, 404, "unknown-prediction"),
        ({"request_id": "known", "label": "cat", "index": 1}, 404, "unknown-prediction"),
        ({"request_id": "known", "label": "spaceship"}, 422, "unknown-label"),
        ({"request_id": "known"}, 422, "invalid-parameter"),
        ({"request_id": "known", "label": "cat", "index": -1}, 422, "invalid-parameter"),
        ({"request_id": "known", "label": "cat", "index": 10**20}, 422, "invalid-parameter"),
        ({"request_id": "known", "label": "cat", "more": 1}, 422, "invalid-parameter"),
        ({"request_id": "known", "label": "x" * 20_000}, 413, "body-too-large"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(kept: Running, body: dict[str, object], status: int, kind: str) -> None:
    kept.post(image_file(), headers={"X-Request-ID": "known"})
    response = kept.client.post("/feedback", json=body)
    assert is_a_problem(response, status)["type"] == f"urn:tenfold:{kind}"


def test_a_body_that_is_no_json_is_refused(kept: Running) -> None:
    assert is_a_problem(kept.client.post("/feedback", content=b"cat"), 422)["type"] == "urn:tenfold:invalid-parameter"


def test_without_the_setting_there_is_no_such_route() -> None:
    with serving() as service:
        problem = is_a_problem(send(service, request_id="a", label="cat"), 404)
        assert "TENFOLD_FEEDBACK=FILE switches feedback on" in problem["detail"]
        assert "/feedback" not in service.client.get("/openapi.json").json()["paths"]
        assert "tenfold_feedback_total{" not in service.client.get("/metrics").text


def test_it_needs_a_key_if_the_service_does(tmp_path: Path) -> None:
    with serving(feedback=tmp_path / "store", api_keys=("key",)) as service:
        assert is_a_problem(send(service, request_id="a", label="cat"), 401)["type"] == "urn:tenfold:unauthorized"


def test_a_store_that_cannot_be_used_does_not_affect_predictions(tmp_path: Path) -> None:
    with serving(feedback=tmp_path / "missing" / "store") as service:
        response = service.post(image_file())
        assert response.status_code == 200
        refused = send(service, request_id=response.headers["X-Request-ID"], label="cat")
        assert is_a_problem(refused, 507)["type"] == "urn:tenfold:not-stored"
        assert samples(service)["tenfold_feedback_lost_total{reason=error}"] == 1
