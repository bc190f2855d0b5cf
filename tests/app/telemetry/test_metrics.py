"""GET /metrics after known traffic."""

import contextlib
import time

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tests.app.fakes import CARD, FakeEngine, fake_classifier, image_file, photo
from tests.app.running import Running, eventually, serving

MODEL = f"{{model={CARD.name}}}"


def samples(service: Running) -> dict[str, float]:
    """name{labels} -> value."""
    response = service.client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_images_are_counted_with_their_outcomes_and_stages() -> None:
    with serving() as service:
        results = [
            result
            for response in (service.post(image_file(seed)) for seed in range(6))
            for result in response.json()["results"]
        ]
        service.upload(("a", photo()), ("b", b"cat"), ("c", image_file()[:-40]))
        found = samples(service)
        assert found[f"tenfold_pictures_total{MODEL}{{outcome=answered}}"] == 7
        assert found[f"tenfold_pictures_total{MODEL}{{outcome=unsupported-picture}}"] == 1
        assert found[f"tenfold_pictures_total{MODEL}{{outcome=unreadable-picture}}"] == 1
        for stage in ("decode", "queue", "inference"):
            assert found[f"tenfold_{stage}_seconds_count{MODEL}"] == 7
            assert found[f"tenfold_{stage}_seconds_sum{MODEL}"] > 0
        results += service.post(photo()).json()["results"]
        found = samples(service)
        labels = [result["top_k"][0]["label"] for result in results]
        labels.append(labels[-1])  # the photo's was sent twice
        for label in set(labels):
            assert found[f"tenfold_predictions_total{{label={label}}}{MODEL}"] == labels.count(label)
        assert found[f"tenfold_confidence_count{MODEL}"] == 8
        confidence = sum(result["top_k"][0]["probability"] for result in [*results, results[-1]])
        assert found[f"tenfold_confidence_sum{MODEL}"] == pytest.approx(confidence, abs=1e-4)
        verdicts = [result["verdict"] for result in [*results, results[-1]]]
        assert len(set(verdicts)) > 1
        for verdict in ("accepted", "uncertain", "other"):
            assert found[f"tenfold_verdicts_total{MODEL}{{verdict={verdict}}}"] == verdicts.count(verdict)
        assert found[f"tenfold_batch_views_sum{MODEL}"] == service.engine.views == 16
        assert found[f"tenfold_batch_views_count{MODEL}"] == len(service.engine.batches) - 2, "photos take two passes"


def test_requests_are_counted_by_route_and_status_and_refusals_by_reason() -> None:
    with serving(max_body_bytes=5000) as service:
        service.post(image_file())
        service.post(image_file())
        service.post(b"cat")
        service.post(bytes(6000))
        service.client.get("/nowhere")
        service.client.get("/also/nowhere")
        service.client.get("/livez")
        service.client.head("/livez")
        service.client.put("/livez")
        found = samples(service)
        requests = {
            name.removeprefix("tenfold_requests_total"): n for name, n in found.items() if "requests_total" in name
        }
        assert requests == {
            f"{MODEL}{{route=/predict}}{{status=200}}": 2,
            f"{MODEL}{{route=/predict}}{{status=415}}": 1,
            f"{MODEL}{{route=/predict}}{{status=413}}": 1,
            "{model=}{route=other}{status=404}": 2,
            "{model=}{route=/livez}{status=200}": 2,
            "{model=}{route=/livez}{status=405}": 1,
        }
        rejections = {
            name.removeprefix("tenfold_rejections_total"): n for name, n in found.items() if "rejections_total" in name
        }
        assert rejections == {
            f"{MODEL}{{reason=unsupported-picture}}": 1,
            f"{MODEL}{{reason=body-too-large}}": 1,
            "{model=}{reason=http-404}": 2,
            "{model=}{reason=http-405}": 1,
        }
        assert found[f"tenfold_request_seconds_count{MODEL}{{route=/predict}}"] == 4
        assert samples(service)["tenfold_requests_total{model=}{route=/metrics}{status=200}"] == 1


def test_gauges_follow_what_is_in_progress_and_return_to_zero() -> None:
    with serving() as service:
        service.engine.block()
        pending = service.in_background(lambda: service.upload(*[("a", image_file())] * 3))
        service.engine.wait_entered()
        service.wait_admitted(3)
        with service.connect() as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            eventually(lambda: samples(service)[f"tenfold_uploads_under_way{MODEL}"] == 1, "an upload is under way")
        assert samples(service)[f"tenfold_pictures_under_way{MODEL}"] == 3
        service.engine.release()
        assert pending.result().status_code == 200
        eventually(lambda: samples(service)[f"tenfold_uploads_under_way{MODEL}"] == 0, "the client has disconnected")
        found = samples(service)
        assert found[f"tenfold_pictures_under_way{MODEL}"] == 0
        eventually(
            lambda: samples(service).get(f"tenfold_rejections_total{MODEL}{{reason=client-gone}}") == 1,
            "the disconnect is counted",
        )


def test_the_gauges_return_to_zero_after_failures_and_disconnects() -> None:
    with serving(timeout=0.3) as service:
        service.engine.block()
        service.post(image_file())
        with service.connect() as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(image_file()))
            connection.sendall(image_file())
            time.sleep(0.05)
        service.engine.failure = RuntimeError("broken")
        service.engine.release()
        service.post(image_file())
        eventually(lambda: samples(service)[f"tenfold_pictures_under_way{MODEL}"] == 0, "nothing is under way")
        assert samples(service)[f"tenfold_uploads_under_way{MODEL}"] == 0


def test_readiness_and_the_model_are_reported() -> None:
    with serving(FakeEngine()) as service:
        found = samples(service)
        assert found["tenfold_ready"] == 1
        labels = {
            "device": "cpu",
            "engine": "fake",
            "model": CARD.name,
            "precision": "float32",
            "version": CARD.version,
        }
        assert found["tenfold_model_info" + "".join(f"{{{key}={value}}}" for key, value in labels.items())] == 1
        assert found["process_resident_memory_bytes"] > 1e6
        service.service.drain()
        assert samples(service)["tenfold_ready"] == 0


def test_a_scrape_collects_the_metrics_once() -> None:
    class Counting(Collector):
        collected = 0

        def collect(self) -> list[Metric]:
            self.collected += 1
            return []

    with serving() as service:
        counting = Counting()
        service.service.telemetry.registry.register(counting)
        samples(service)
        assert counting.collected == 1


def test_two_applications_in_one_process_count_apart() -> None:
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(serving()) for _ in range(2))
        first.post(image_file())
        assert samples(first)[f"tenfold_confidence_count{MODEL}"] == 1
        assert samples(second)[f"tenfold_confidence_count{MODEL}"] == 0


def test_models_are_counted_apart_and_no_label_is_a_name_that_a_client_invents() -> None:
    engine = FakeEngine()
    with serving(others={"b": lambda: fake_classifier(engine, "b")}) as service:
        for model in (CARD.name, "b", "b", "invented"):
            service.post(image_file(), params={"model": model})
        service.post(b"cat", params={"model": "b"})
        service.client.get("/models/invented")
        found = samples(service)
        for model, images in ((CARD.name, 1), ("b", 2)):
            assert found[f"tenfold_pictures_total{{model={model}}}{{outcome=answered}}"] == images
            assert found[f"tenfold_requests_total{{model={model}}}{{route=/predict}}{{status=200}}"] == images
            assert found[f"tenfold_request_seconds_count{{model={model}}}{{route=/predict}}"] >= images
            for name in ("batch_views", "confidence", "decode_seconds", "queue_seconds", "inference_seconds"):
                assert found[f"tenfold_{name}_count{{model={model}}}"] == images, name
            assert found[f"tenfold_pictures_under_way{{model={model}}}"] == 0
            assert found[f"tenfold_uploads_under_way{{model={model}}}"] == 0
        assert found["tenfold_pictures_total{model=b}{outcome=unsupported-picture}"] == 1
        assert found["tenfold_rejections_total{model=b}{reason=unsupported-picture}"] == 1
        assert found["tenfold_rejections_total{model=}{reason=unknown-model}"] == 2
        assert not [name for name in found if "invented" in name]


def test_an_error_of_a_metric_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """As when the files that several processes share cannot be written."""
    with serving() as service:
        service.service.telemetry.registry = None  # type: ignore[assignment]
        for name, metric in list(vars(service.service.telemetry).items()):
            if name.startswith("_") and hasattr(metric, "labels"):
                setattr(service.service.telemetry, name, None)
        assert service.post(image_file()).status_code == 200
        assert service.post(b"no image").status_code == 415
        assert service.client.get("/livez").status_code == 200
    assert "a metric cannot be counted" in caplog.text
