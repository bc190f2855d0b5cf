"""GET /drift and its metrics."""

import math

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.engine.drift import DISTRIBUTIONS
from app.engine.models import LoadedModel
from model import Classifier
from tests.app.fakes import CARD, FakeEngine, image_file
from tests.app.running import Running, serving


def gauges(service: Running, name: str) -> dict[str, float]:
    """Distribution -> sum over the bins."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(service.client.get("/metrics").text):
        for sample in family.samples:
            if sample.name == name:
                distribution = sample.labels["distribution"]
                found[distribution] = found.get(distribution, 0) + sample.value
    return found


def test_the_same_image_again_and_again_is_a_drift() -> None:
    with serving(drift_window=80, drift_min_images=40) as service:
        for sent in range(1, 101):
            service.post(image_file())
            if sent == 39:
                (found,) = service.client.get("/drift").json()["models"]
                assert found == {
                    "name": CARD.name,
                    "version": CARD.version,
                    "state": "collecting",
                    "images": 39,
                    "distributions": {},
                    "summary": "39 of the 40 images that are needed have been classified.",
                }
                assert all(map(math.isnan, gauges(service, "tenfold_drift_psi").values()))
        report = service.client.get("/drift").json()
        assert (report["workers"], report["window"]) == (1, 80)
        (found,) = report["models"]
        assert (found["state"], found["images"]) == ("drifted", 80)
        assert set(found["distributions"]) == set(DISTRIBUTIONS)
        assert all(
            shift["drifted"] and shift["psi"] > shift["limit"] > 0.1 for shift in found["distributions"].values()
        )
        assert found["summary"].startswith("The last 80 images differ from the held-out images: ")
        assert "is predicted for 100.0% of the images instead of 10.0%" in found["summary"]
        assert gauges(service, "tenfold_drift_images") == dict.fromkeys(DISTRIBUTIONS, 80)
        for name, field in (("tenfold_drift_psi", "psi"), ("tenfold_drift_limit", "limit")):
            expected = {name: shift[field] for name, shift in found["distributions"].items()}
            assert gauges(service, name) == pytest.approx(expected, abs=1e-4)


def test_images_that_do_not_differ_much_are_stable() -> None:
    with serving(drift_min_images=20, drift_classes=50, drift_confidence=50, drift_in_distribution=50) as service:
        for seed in range(20):
            service.post(image_file(seed))
        (found,) = service.client.get("/drift").json()["models"]
        assert (found["state"], found["summary"]) == ("stable", "The last 20 images resemble the held-out images.")


def test_every_route_with_images_counts() -> None:
    with serving() as service:
        service.post(image_file())
        service.client.post("/explain", content=image_file())
        service.upload(("a", image_file(1)), ("b", b"cat"), ("c", image_file(2)))
        assert service.client.get("/drift").json()["models"][0]["images"] == 4


def test_it_can_be_turned_off() -> None:
    with serving(drift_window=0) as service:
        service.post(image_file())
        (found,) = service.client.get("/drift").json()["models"]
        assert (found["state"], found["images"]) == ("off", 0)
        assert found["summary"] == "Nothing is compared, because TENFOLD_DRIFT_WINDOW is 0."
        assert all(map(math.isnan, gauges(service, "tenfold_drift_psi").values()))
        assert gauges(service, "tenfold_drift_images") == {}


def test_a_bundle_without_reference_is_served_without_it() -> None:
    def load() -> Classifier:
        return Classifier(CARD.model_copy(update={"reference": None}), FakeEngine())

    with serving(load=load) as service:
        assert service.post(image_file()).status_code == 200
        (found,) = service.client.get("/drift").json()["models"]
        assert found["state"] == "off"
        assert "tenfold calibrate --reference-only" in found["summary"]


def test_it_needs_a_key_if_the_service_does() -> None:
    with serving(api_keys=("key",)) as service:
        refused: httpx.Response = service.client.get("/drift")
        assert refused.status_code == 401
        assert service.client.get("/drift", headers={"X-API-Key": "key"}).status_code == 200


def test_a_new_model_has_a_window_of_its_own() -> None:
    with serving(drift_min_images=1) as service:
        service.post(image_file())
        old = service.core.models.get(CARD.name)
        assert old.window is not None
        assert sum(old.window.counts["classes"]) == 1
        assert gauges(service, "tenfold_drift_images") == dict.fromkeys(DISTRIBUTIONS, 1)
        assert all(value >= 0 for value in gauges(service, "tenfold_drift_psi").values())
        service.core.models.serve(LoadedModel(old.info, old.batcher, old.admission, None))
        assert gauges(service, "tenfold_drift_images") == dict.fromkeys(DISTRIBUTIONS, 0)
        assert all(map(math.isnan, gauges(service, "tenfold_drift_psi").values())), "not that of earlier weights"
        service.core.models.serve(old)
