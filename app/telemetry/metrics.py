"""Metrics in Prometheus's format."""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, get_args

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    Summary,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from model import Verdict

P = ParamSpec("P")

logger = logging.getLogger("tenfold")

MEDIA_TYPE = CONTENT_TYPE_LATEST

# Seconds between two log lines that report errors of metrics.
_LOG_INTERVAL = 10.0

# Environment variable of prometheus_client: the folder that several processes share. Read when it is imported.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_VIEWS = (1, 2, 4, 8, 16, 32, 64, 128)
_PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)


def mark_process_ended(pid: int, folder: str) -> None:
    """Remove the gauges of a process that has ended. Its counters stay in the sum."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


_MODEL_INFO = "tenfold_model_info"


class _AllProcesses(MultiProcessCollector):
    """The sums over all processes, without the models that are not served any more: no file forgets a series."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():  # type: ignore[no-untyped-call]
            if metric.name == _MODEL_INFO:
                metric.samples = [sample for sample in metric.samples if sample.value]
            yield metric


@dataclass(frozen=True, slots=True)
class Total:
    """How often something happened, and the seconds that it took in total."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """The sums of a model.

    Attributes:
        images: that were classified.
        batches: that were successful.
        success: requests with status 200.
        failure: requests with another status.
        decode: images that were decoded and preprocessed.
        queue: images, with their wait for a batch.
        inference: images, with the time of their batch in the engine.
        last_batch: Unix time at which the last successful batch ended; 0 before it.
    """

    images: int
    batches: int
    success: Total
    failure: Total
    decode: Total
    queue: Total
    inference: Total
    last_batch: float


def _counts(method: Callable[P, None]) -> Callable[P, None]:
    """Make a method that counts something log its errors, because no request or batch may fail for a metric.

    With several processes, for example, the folder of their files may be removed or its disk be full.
    """
    logged_at = -math.inf

    @wraps(method)
    def count(*args: P.args, **kwargs: P.kwargs) -> None:
        nonlocal logged_at
        try:
            method(*args, **kwargs)
        except Exception:
            if time.monotonic() >= logged_at + _LOG_INTERVAL:
                logged_at = time.monotonic()
                logger.exception("a metric cannot be counted")

    return count


class Telemetry:
    """The metrics of one application. Values of the label `model` are names of models, never input of a client.

    With `SHARED_FOLDER` in the environment each process writes its metrics there, and each reports the sum.
    """

    def __init__(self) -> None:
        # labels() of prometheus_client takes a tenth of the time of a small request.
        self._child = cache(lambda metric, *labels: metric.labels(*labels))
        self._window_bins: dict[str, set[tuple[str, str]]] = {}
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tenfold_requests",
            "Requests by route, status and model.",
            ("route", "status", "model"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "tenfold_request_seconds",
            "Seconds from a request's first byte to its response.",
            ("route", "model"),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rejections = Counter(
            "tenfold_rejections",
            "Requests refused, by problem type and model.",
            ("reason", "model"),
            registry=self.registry,
        )
        self._connections_refused = Counter(
            "tenfold_connections_refused",
            "Connections refused because there are as many as there may be.",
            registry=self.registry,
        )
        self._pictures = Counter(
            "tenfold_pictures",
            "Images by outcome: answered, or the problem type.",
            ("outcome", "model"),
            registry=self.registry,
        )
        self._decoders_ended = Counter(
            "tenfold_decoders_ended",
            "Processes that ended while they decoded an image, by reason: crash, cpu-time or wall-time.",
            ("reason",),
            registry=self.registry,
        )
        for reason in ("crash", "cpu-time", "wall-time"):  # from 0, so that the first one is an increase
            self._decoders_ended.labels(reason)
        self._images_in_progress = Gauge(
            "tenfold_pictures_under_way",
            "Images being decoded, waiting or in a batch.",
            ("model",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._uploads_in_progress = Gauge(
            "tenfold_uploads_under_way",
            "Requests whose body is being read.",
            ("model",),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._ready = Gauge(
            "tenfold_ready",
            "Processes whose /readyz is 200.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._model = Gauge(
            _MODEL_INFO,
            "A model and its engine; the value is 1.",
            ("model", "version", "engine", "device", "precision"),
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._batch_views = Histogram(
            "tenfold_batch_views",
            "Views that were run in a batch, first and further ones.",
            ("model",),
            buckets=_VIEWS,
            registry=self.registry,
        )
        self._stages = {
            name: Histogram(f"tenfold_{name}_seconds", about, ("model",), buckets=_SECONDS, registry=self.registry)
            for name, about in (
                ("decode", "Seconds to decode and preprocess an image, including its wait for a process."),
                ("queue", "Seconds that an image waits for its batch."),
                ("inference", "Seconds of an image's batch."),
            )
        }
        self._model_seconds = Summary(
            "tenfold_model_seconds",
            "Seconds of the requests for a model, by outcome: success or failure.",
            ("outcome", "model"),
            registry=self.registry,
        )
        self._last_batch = Gauge(
            "tenfold_last_batch_timestamp_seconds",
            "Unix time at which the last successful batch ended.",
            ("model",),
            registry=self.registry,
            multiprocess_mode="max",
        )
        self._predictions = Counter(
            "tenfold_predictions", "Images by their most probable class.", ("label", "model"), registry=self.registry
        )
        self._confidence = Histogram(
            "tenfold_confidence",
            "Probability of the most probable class.",
            ("model",),
            buckets=_PROBABILITIES,
            registry=self.registry,
        )
        self._verdicts = Counter(
            "tenfold_verdicts", "Images by their verdict.", ("verdict", "model"), registry=self.registry
        )
        self._swaps = Counter(
            "tenfold_swaps", "Requests for other weights, by outcome.", ("outcome", "model"), registry=self.registry
        )
        self._shadow_images = Counter(
            "tenfold_shadow_images",
            "Live images that new weights classified too, by outcome: agreed, disagreed, failed, or dropped.",
            ("outcome", "model"),
            registry=self.registry,
        )
        self._shadow_confidence = Summary(
            "tenfold_shadow_confidence",
            "Probability of the most probable class of those images, by weights: serving or candidate.",
            ("weights", "model"),
            registry=self.registry,
        )
        self._shadow_accepted = Counter(
            "tenfold_shadow_accepted",
            "Those images with the verdict accepted, by weights: serving or candidate.",
            ("weights", "model"),
            registry=self.registry,
        )
        self._drift_images = Gauge(
            "tenfold_drift_images",
            "The last images, by distribution and bin, for the comparison with held-out images.",
            ("distribution", "bin", "model"),
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._drift_psi = Gauge(
            "tenfold_drift_psi",
            "Population stability index of a distribution against held-out images; NaN if nothing is compared.",
            ("distribution", "model"),
            registry=self.registry,
            multiprocess_mode="livemostrecent",
        )
        self._drift_limit = Gauge(
            "tenfold_drift_limit",
            "The index above which a distribution has drifted; NaN if nothing is compared.",
            ("distribution", "model"),
            registry=self.registry,
            multiprocess_mode="livemostrecent",
        )
        self._feedback = Counter(
            "tenfold_feedback",
            "Images with a right label from a client: the prediction was right or wrong, or the image shows none of "
            "the classes.",
            ("outcome", "model"),
            registry=self.registry,
        )
        self._feedback_lost = Counter(
            "tenfold_feedback_lost",
            "Predictions that could not be stored for feedback, by reason: busy or error.",
            ("reason",),
            registry=self.registry,
        )
        if SHARED_FOLDER not in os.environ:
            ProcessCollector(registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """The metrics of all processes. With several, this reads the files of all and adds them up."""
        several = SHARED_FOLDER in os.environ
        return _AllProcesses(None).collect() if several else self.registry.collect()  # type: ignore[no-untyped-call]

    def exposition(self) -> bytes:
        """The metrics of all processes in Prometheus's text format. It may be called in any thread."""
        return generate_latest(_AllProcesses(None) if SHARED_FOLDER in os.environ else self.registry)  # type: ignore[no-untyped-call]

    def totals(self, model: str) -> ModelTotals:
        """The sums of a model over all processes since the start of the service. It may be called in any thread."""
        values = {
            (
                sample.name,
                *(value for label, value in sample.labels.items() if label != "model"),
            ): sample.value
            for metric in self.collect()
            for sample in metric.samples
            if sample.labels.get("model") == model
        }

        def total(name: str, *labels: str) -> Total:
            return Total(int(values.get((f"{name}_count", *labels), 0)), values.get((f"{name}_sum", *labels), 0.0))

        return ModelTotals(
            images=int(values.get(("tenfold_pictures_total", "answered"), 0)),
            batches=total("tenfold_batch_views").count,
            success=total("tenfold_model_seconds", "success"),
            failure=total("tenfold_model_seconds", "failure"),
            decode=total("tenfold_decode_seconds"),
            queue=total("tenfold_queue_seconds"),
            inference=total("tenfold_inference_seconds"),
            last_batch=values.get(("tenfold_last_batch_timestamp_seconds",), 0.0),
        )

    @_counts
    def drift(self, model: str, distribution: str, *, psi: float = math.nan, limit: float = math.nan) -> None:
        """Set the population stability index of a distribution over all processes, and its limit; NaN without them."""
        self._drift_psi.labels(distribution, model).set(psi)
        self._drift_limit.labels(distribution, model).set(limit)

    @_counts
    def request(self, *, route: str, status: int, model: str, seconds: float, rejected: str | None) -> None:
        """Count a request that got a response or whose client disconnected.

        Args:
            route: the route's path as declared, or "other" if there is no such route.
            status: of the response, or 499 if the client disconnected before.
            model: name of the model that it is for; empty if it is for none.
            seconds: since the request's first byte.
            rejected: slug of the problem for which it was refused, if it was.
        """
        self._child(self._requests, route, str(status), model).inc()
        self._child(self._request_seconds, route, model).observe(seconds)
        if model:
            self._child(self._model_seconds, "success" if status == 200 else "failure", model).observe(seconds)
        if rejected:
            self._child(self._rejections, rejected, model).inc()

    @_counts
    def connection_refused(self) -> None:
        """Count a connection that is refused because there are as many as there may be."""
        self._connections_refused.inc()

    @_counts
    def image_rejected(self, model: str, problem: str) -> None:
        """Count an image that could not be classified, by the problem's slug."""
        self._child(self._pictures, problem, model).inc()

    @_counts
    def decoder_ended(self, reason: str) -> None:
        """Count a process that ended while it decoded an image, by the reason: crash or cpu-time."""
        self._child(self._decoders_ended, reason).inc()

    @_counts
    def image_classified(
        self,
        model: str,
        *,
        label: str,
        confidence: float,
        verdict: Verdict,
        stages: Mapping[str, float],
    ) -> None:
        """Count a classified image.

        Args:
            model: name of the model.
            label: its most probable class.
            confidence: probability of that class.
            verdict: whether it appears to be one of the classes.
            stages: seconds to decode and preprocess it, to wait for its batch, and of its batch, as `decode`, `queue`
                and `inference`. An image that came as pixels has no `decode`.
        """
        self._child(self._pictures, "answered", model).inc()
        self._child(self._predictions, label, model).inc()
        self._child(self._confidence, model).observe(confidence)
        self._child(self._verdicts, verdict, model).inc()
        for name, seconds in stages.items():
            self._child(self._stages[name], model).observe(seconds)

    @_counts
    def feedback(self, model: str, outcome: Literal["right", "wrong", "none"]) -> None:
        """Count an image whose right label is known; "none" if it shows none of the classes."""
        self._feedback.labels(outcome, model).inc()

    @_counts
    def feedback_lost(self, reason: Literal["busy", "error"], predictions: int) -> None:
        """Count predictions that could not be stored for feedback."""
        self._feedback_lost.labels(reason).inc(predictions)

    @_counts
    def expect_feedback(self, models: Iterable[str]) -> None:
        """Begin to report the metrics of feedback at zero."""
        for reason in ("busy", "error"):
            self._feedback_lost.labels(reason)
        for model in models:
            for outcome in ("right", "wrong", "none"):
                self._feedback.labels(outcome, model)

    @_counts
    def batch(self, model: str, views: int) -> None:
        """Count a batch in which so many views were run."""
        self._child(self._batch_views, model).observe(views)
        self._child(self._last_batch, model).set_to_current_time()

    @_counts
    def images_in_progress(self, images: Mapping[str, int]) -> None:
        """Set, by model, how many images are being decoded, waiting or in a batch."""
        for model, count in images.items():
            self._images_in_progress.labels(model).set(count)

    @_counts
    def uploads_in_progress(self, uploads: Mapping[str, int]) -> None:
        """Set, by model, of how many requests the body is being read."""
        for model, count in uploads.items():
            self._uploads_in_progress.labels(model).set(count)

    @_counts
    def window(self, model: str, counts: Mapping[Any, Sequence[int]]) -> None:
        """Set, by distribution, how many of the last images are in each bin; see `app.engine.drift`."""
        bins = {
            (distribution, str(index)): images
            for distribution, distributed in counts.items()
            for index, images in enumerate(distributed)
        }
        for labels in self._window_bins.get(model, set()) - set(bins):  # of earlier weights
            self._drift_images.labels(*labels, model).set(0)
        self._window_bins[model] = set(bins)
        for labels, images in bins.items():
            self._drift_images.labels(*labels, model).set(images)

    @_counts
    def ready(self, ready: bool) -> None:
        """Set whether /readyz is 200."""
        self._ready.set(ready)

    @_counts
    def model(self, *, model: str, version: str, engine: str, device: str, precision: str) -> None:
        """Set a model and its engine, and begin to report its metrics at zero if their other labels are known."""
        self._model.labels(model, version, engine, device, precision).set(1)
        for metric in (self._batch_views, *self._stages.values(), self._confidence):
            metric.labels(model)
        for verdict in get_args(Verdict):
            self._verdicts.labels(verdict, model)
        for outcome in ("swapped", "refused"):
            self._swaps.labels(outcome, model)
        for outcome in ("agreed", "disagreed"):
            self._shadow_images.labels(outcome, model)
        for weights in ("serving", "candidate"):
            self._shadow_confidence.labels(weights, model)
            self._shadow_accepted.labels(weights, model)

    @_counts
    def model_gone(self, *, model: str, version: str, engine: str, device: str, precision: str) -> None:
        """Report a model and its engine no more."""
        labels = (model, version, engine, device, precision)
        if SHARED_FOLDER in os.environ:
            self._model.labels(*labels).set(0)
        else:
            self._model.remove(*labels)

    @_counts
    def swap(self, model: str, outcome: str) -> None:
        """Count a request for other weights: swapped, rolled-back, confirmed, or why it was not carried out."""
        self._swaps.labels(outcome, model).inc()

    @_counts
    def shadow_image(self, model: str, outcome: str) -> None:
        """Count a copy of a live image for new weights: agreed, disagreed, failed or dropped."""
        self._shadow_images.labels(outcome, model).inc()

    @_counts
    def shadow_prediction(self, model: str, weights: str, confidence: float, accepted: bool) -> None:
        """Count the prediction for such an image, by the weights: serving or candidate."""
        self._shadow_confidence.labels(weights, model).observe(confidence)
        if accepted:
            self._shadow_accepted.labels(weights, model).inc()
