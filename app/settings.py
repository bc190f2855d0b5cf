"""Every knob of the service, once. Each is read from the environment variable TENFOLD_<NAME>."""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.telemetry.logs import LogFormat
from model import MAX_VIEWS, DeviceName, EngineName


def _words(text: object) -> object:
    return [word for word in map(str.strip, text.split(",")) if word] if isinstance(text, str) else text


def _sendable(key: SecretStr) -> SecretStr:
    if not all("!" <= character <= "~" for character in key.get_secret_value()):
        raise ValueError("a key is made of ASCII letters, digits and signs, for it travels in a header")
    return key


class Settings(BaseSettings):
    """The service's settings; the README's table is held equal to this class by a test."""

    model_config = SettingsConfigDict(env_prefix="TENFOLD_", extra="ignore", frozen=True)

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    workers: Annotated[int, Field(ge=1, le=64, description="Processes, each with its own copy of the model.")] = 1
    weights: Annotated[Path, Field(description="Folder of the bundle to serve.")] = Path("weights/resnet18-cifar10")
    engine: Annotated[
        EngineName, Field(description="Runtime: `auto` takes `torch` on CUDA, else `openvino`, else `torch`.")
    ] = "auto"
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
    api_keys: Annotated[
        tuple[Annotated[SecretStr, Field(min_length=1), AfterValidator(_sendable)], ...],
        NoDecode,
        BeforeValidator(_words),
        Field(description="Keys, with commas between them, one of which a request must bring; probes need none."),
    ] = ()
    cors_origins: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_words),
        Field(description="Origins, with commas between them, whose pages may call the service from a browser."),
    ] = ()
    queue_size: Annotated[
        int, Field(ge=1, description="Most pictures under way, over all requests; beyond it 503.")
    ] = 256
    max_body_bytes: Annotated[int, Field(ge=1, description="Largest request body, bytes.")] = 20_000_000
    max_uploads: Annotated[int, Field(ge=1, description="Most requests whose body is being read; beyond it 503.")] = 256
    max_held_bytes: Annotated[
        int, Field(ge=1, description="Most bytes of request bodies held in memory, over all requests; beyond it 503.")
    ] = 500_000_000
    max_pixels: Annotated[int, Field(ge=1, description="Largest picture, width x height.")] = 50_000_000
    max_files: Annotated[int, Field(ge=1, description="Most pictures in one request.")] = 32
    timeout: Annotated[FiniteFloat, Field(gt=0, description="Seconds from a request's first byte to its answer.")] = (
        10.0
    )
    stall_timeout: Annotated[
        FiniteFloat, Field(gt=0, description="Seconds that one forward pass may take before the process gives up.")
    ] = 60.0
    drain_delay: Annotated[
        FiniteFloat,
        Field(ge=0, description="Seconds that the service goes on answering after SIGTERM, /readyz being 503."),
    ] = 1.0
    drain_timeout: Annotated[int, Field(ge=0, description="Seconds that it then waits for the answers it owes.")] = 30
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least level logged.")] = (
        "info"
    )
    log_format: Annotated[LogFormat, Field(description="`auto` is text on a terminal and JSON elsewhere.")] = "auto"

    @model_validator(mode="after")
    def _a_body_fits(self) -> Self:
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(
                f"TENFOLD_MAX_HELD_BYTES ({self.max_held_bytes}) is below TENFOLD_MAX_BODY_BYTES "
                f"({self.max_body_bytes}): the largest request would never fit"
            )
        return self

    @model_validator(mode="after")
    def _a_full_request_fits(self) -> Self:
        if self.max_files > self.queue_size:
            raise ValueError(
                f"TENFOLD_QUEUE_SIZE ({self.queue_size}) is below TENFOLD_MAX_FILES ({self.max_files}): "
                "a full request would never fit"
            )
        return self


def error_messages(error: ValidationError) -> list[str]:
    """What is wrong with the settings, a sentence each, by the variables' names."""
    return [
        # No name where settings disagree.
        "".join(f"TENFOLD_{str(part).upper()}: " for part in problem["loc"][:1])
        + problem["msg"].removeprefix("Value error, ")
        for problem in error.errors()
    ]


def default_weights() -> Path:
    """The bundle for the commands: the environment's, else the default one, from wherever they are run."""
    default: Path = Settings.model_fields["weights"].default
    named = Path(os.environ.get("TENFOLD_WEIGHTS", default))
    beside = Path(__file__).resolve().parents[1] / default
    return beside if named == default and not named.exists() and beside.exists() else named
