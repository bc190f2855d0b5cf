"""The service on Ray Serve: serve run deploy.ray.serve:app.

Each replica is one service with its own copy of the models. The settings of the service (TENFOLD_...) are read from the
environment of the replica.
"""

import asyncio
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve

if TYPE_CHECKING:
    from app.serving.service import Service

_POLL_SECONDS = 0.05


def build() -> FastAPI:
    """The application of a replica."""
    from app.main import create_app
    from app.settings import Settings, default_weights

    found: dict[str, Any] = default_weights()  # a replica runs in a folder of its own
    return create_app(Settings(**found))


class Replica:
    """A replica, whose health is the readiness of the service."""

    app: FastAPI

    async def check_health(self) -> None:
        """Called by Ray Serve, which sends requests to a replica after the first call and replaces it if one raises.

        Raises:
            NotAlive: a model cannot be loaded, or its engine does not work.
        """
        service: Service = self.app.state.service
        while service.state == "loading":
            await asyncio.sleep(_POLL_SECONDS)
        service.check_ready()


deployment: Any = serve.deployment(
    name="tenfold",
    # The service itself queues requests, and refuses those that it cannot answer in time.
    max_ongoing_requests=256,
    max_queued_requests=-1,
    autoscaling_config={
        "min_replicas": 1,
        "max_replicas": 8,
        "target_ongoing_requests": 16,
        "upscale_delay_s": 10,
        "downscale_delay_s": 120,
    },
    ray_actor_options={"num_cpus": 1},
    health_check_period_s=5,
    health_check_timeout_s=30,
    graceful_shutdown_wait_loop_s=1,
    graceful_shutdown_timeout_s=40,
)(serve.ingress(build)(Replica))

app = deployment.bind()
