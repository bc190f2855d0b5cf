"""Statistics of models in the form of Triton's statistics extension, from the metrics."""

from app.http.oip.interface import ServedModel
from app.http.oip.schemas import Duration, InferenceStatistics, ModelStatistics
from app.telemetry.metrics import Telemetry, Total

_NOTHING = Duration(count=0, ns=0)


def statistics_of(served: ServedModel, telemetry: Telemetry) -> ModelStatistics:
    """The statistics of the bundle that a model is served from.

    They count requests to all endpoints, so NAME and NAME-image have the same. All stages count each image, because
    Triton's perf_analyzer requires equal counts.
    """
    totals = telemetry.totals(served.model.name)
    return ModelStatistics(
        name=served.name,
        version=served.version,
        last_inference=round(totals.last_batch * 1000),
        inference_count=totals.images,
        execution_count=totals.batches,
        inference_stats=InferenceStatistics(
            success=_duration(totals.success),
            fail=_duration(totals.failure),
            queue=_duration(totals.queue),
            compute_input=_duration(Total(totals.inference.count, totals.decode.seconds)),
            compute_infer=_duration(totals.inference),
            compute_output=_duration(Total(totals.inference.count, 0.0)),
            cache_hit=_NOTHING,
            cache_miss=_NOTHING,
        ),
        batch_stats=[],
    )


def _duration(total: Total) -> Duration:
    return Duration(count=total.count, ns=round(total.seconds * 1e9))
