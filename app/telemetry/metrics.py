"""What is counted and measured, and how Prometheus is told."""

import os
from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

MEDIA_TYPE = CONTENT_TYPE_LATEST

# prometheus_client's name for the folder that several processes share; it is read when that is imported.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_VIEWS = (1, 2, 4, 8, 16, 32, 64, 128)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99)


def mark_worker_dead(pid: int, folder: str) -> None:
    """Leave a process that has ended out of the gauges; what it has counted stays."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]


class Telemetry:
    """The metrics of one application. The README lists them.

    With `SHARED_FOLDER` in the environment each process writes its own there, and any of them tells the sum.

    Args:
        pictures: tells how many are being decoded, waiting or in a batch.
        uploads: tells of how many requests the body is being read.
    """

    def __init__(self, pictures: Callable[[], int] = lambda: 0, uploads: Callable[[], int] = lambda: 0) -> None:
        self._levels = (pictures, uploads)
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "tenfold_requests", "Requests answered, by route and status.", ("route", "status"), registry=self.registry
        )
        self._request_seconds = Histogram(
            "tenfold_request_seconds",
            "From a request's first byte to its answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._rejections = Counter(
            "tenfold_rejections", "Requests refused, by the problem's type.", ("reason",), registry=self.registry
        )
        self._pictures = Counter(
            "tenfold_pictures",
            "Images answered, or refused by the problem's type.",
            ("outcome",),
            registry=self.registry,
        )
        self._under_way = Gauge(
            "tenfold_pictures_under_way",
            "Images being decoded, waiting or in a batch.",
            registry=self.registry,
            multiprocess_mode="livesum",
        )
        self._uploads = Gauge(
            "tenfold_uploads_under_way",
            "Requests whose body is being read.",
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
            "tenfold_model_info",
            "What is served, and by what: 1.",
            ("name", "version", "engine", "device", "precision"),
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self._batch_views = Histogram(
            "tenfold_batch_views", "Views in a forward pass.", buckets=_VIEWS, registry=self.registry
        )
        self._stages = {
            name: Histogram(f"tenfold_{name}_seconds", about, buckets=_SECONDS, registry=self.registry)
            for name, about in (
                ("decode", "Decoding and transforming a picture, its wait for a thread included."),
                ("queue", "A picture's wait for its batch."),
                ("inference", "A picture's batch."),
            )
        }
        self._predictions = Counter(
            "tenfold_predictions", "Images by their likeliest class.", ("label",), registry=self.registry
        )
        self._confidence = Histogram(
            "tenfold_confidence", "Probability of the likeliest class.", buckets=_SHARES, registry=self.registry
        )
        self._accepted = Counter("tenfold_accepted", "Images accepted as one of the classes.", registry=self.registry)
        if SHARED_FOLDER not in os.environ:
            ProcessCollector(registry=self.registry)

    def exposition(self) -> bytes:
        """All of it in Prometheus's text format, over all processes."""
        self.sample_gauges()
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        return generate_latest(shared)

    def request(self, *, route: str, status: int, seconds: float, rejected: str | None) -> None:
        """A request has been answered, or its caller has gone.

        Args:
            route: its path as declared; "other" for none of ours.
            status: of the answer; 499 if nobody was there to get it.
            seconds: since its first byte.
            rejected: why it was refused, as the slug of a problem.
        """
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)
        if rejected:
            self._rejections.labels(rejected).inc()

    def image_rejected(self, problem: str) -> None:
        """A picture could not be classified, for the problem with this slug."""
        self._pictures.labels(problem).inc()

    def image_classified(
        self, *, label: str, confidence: float, accepted: bool, decode: float, queue: float, inference: float
    ) -> None:
        """A picture was classified; the last three are seconds."""
        self._pictures.labels("answered").inc()
        self._predictions.labels(label).inc()
        self._confidence.observe(confidence)
        self._accepted.inc(accepted)
        for name, seconds in (("decode", decode), ("queue", queue), ("inference", inference)):
            self._stages[name].observe(seconds)

    def batch(self, views: int) -> None:
        """A forward pass over so many views has begun."""
        self._batch_views.observe(views)

    def sample_gauges(self) -> None:
        """Note what is under way. To be called now and then, for other processes' sake; to count it at every change
        takes longer than all the histograms.
        """
        for gauge, level in zip((self._under_way, self._uploads), self._levels, strict=True):
            gauge.set(level())

    def ready(self, ready: bool) -> None:
        """Whether /readyz is 200 from now on."""
        self._ready.set(ready)

    def model(self, *, name: str, version: str, engine: str, device: str, precision: str) -> None:
        """What is served, and by what."""
        self._model.labels(name, version, engine, device, precision).set(1)
