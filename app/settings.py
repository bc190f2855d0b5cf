"""Every knob of the service, once. Each is read from the environment variable TENFOLD_<NAME>."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, FiniteFloat, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model import MAX_VIEWS, DeviceName, EngineName


class Settings(BaseSettings):
    """The service's settings; the README's table is held equal to this class by a test."""

    model_config = SettingsConfigDict(env_prefix="TENFOLD_", extra="ignore", frozen=True)

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    weights: Annotated[Path, Field(description="Folder of the bundle to serve.")] = Path("weights/resnet18-cifar10")
    engine: Annotated[EngineName, Field(description="Runtime of the network.")] = "auto"
    device: Annotated[DeviceName, Field(description="`auto` takes CUDA where there is one.")] = "auto"
    threads: Annotated[int, Field(ge=0, description="Threads of the network on a CPU; 0 leaves it to the runtime.")] = 0
    decode_threads: Annotated[int, Field(ge=1, description="Threads that decode pictures.")] = 2
    max_batch: Annotated[int, Field(ge=1, description="Most views in one forward pass.")] = 32
    views: Annotated[
        int,
        Field(ge=1, le=MAX_VIEWS, description="Views averaged of a large, oblong picture, unless a request says."),
    ] = 2
    min_confidence: Annotated[
        FiniteFloat, Field(ge=0, le=1, description="Least probability of an accepted answer, unless a request says.")
    ] = 0.0
    queue_size: Annotated[
        int, Field(ge=1, description="Most pictures under way, over all requests; beyond it 503.")
    ] = 256
    max_body_bytes: Annotated[int, Field(ge=1, description="Largest request body, bytes.")] = 20_000_000
    max_pixels: Annotated[int, Field(ge=1, description="Largest picture, width x height.")] = 50_000_000
    max_files: Annotated[int, Field(ge=1, description="Most pictures in one request.")] = 32
    timeout: Annotated[FiniteFloat, Field(gt=0, description="Seconds from a request's arrival to its answer.")] = 10.0
    stall_timeout: Annotated[
        FiniteFloat, Field(gt=0, description="Seconds that one forward pass may take before /livez gives up on it.")
    ] = 60.0
    drain_delay: Annotated[
        FiniteFloat,
        Field(ge=0, description="Seconds that the service goes on answering after SIGTERM, /readyz being 503."),
    ] = 1.0
    drain_timeout: Annotated[int, Field(ge=0, description="Seconds that it then waits for the answers it owes.")] = 30
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")] = (
        "info"
    )

    @model_validator(mode="after")
    def _a_full_request_fits(self) -> Self:
        if self.max_files > self.queue_size:
            raise ValueError(
                f"TENFOLD_QUEUE_SIZE ({self.queue_size}) is below TENFOLD_MAX_FILES ({self.max_files}): "
                "a full request would never fit"
            )
        return self
