"""Every knob of the service, once. Each is read from the environment variable TENFOLD_<NAME>."""

import os
import re
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.cpus import available_cpus
from app.environment import cleaned
from app.telemetry.logs import LogFormat
from model import MAX_VIEWS, EngineName

LEAST_DECODE_THREADS = 2
"""Two, also on one CPU, so that a large image does not stop the decoding of the others."""


def _list(text: object) -> object:
    return [word for word in map(cleaned, text.split(",")) if word] if isinstance(text, str) else text


def _keys(text: object) -> object:
    keys = _list(text)
    if not keys and isinstance(text, str):
        raise ValueError("it names no key: remove the variable, or write a key")
    return keys


def _lower(text: object) -> object:
    return text.lower() if isinstance(text, str) else text


def _origin(text: str) -> str:
    """An origin as browsers send it: in lower case, without a slash at its end and without the default port."""
    if text in ("*", "null"):
        return text
    expected = f"{text} is not an origin: write scheme, host and port only, such as https://example.com:8443, or *"
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    valid = parts.scheme and parts.hostname and text.isascii() and not set(text) & set("*@?# \\")
    if not valid or parts.path not in ("", "/"):
        raise ValueError(expected)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    return f"{parts.scheme}://{host}" + ("" if port in (None, default) else f":{port}")


def _ascii_key(key: SecretStr) -> SecretStr:
    if not all("!" <= character <= "~" for character in key.get_secret_value()):
        raise ValueError("a key is made of ASCII letters, digits and signs, for it travels in a header")
    return key


def _path_prefix(text: str) -> str:
    prefix = "/" + text.strip("/")
    if not re.fullmatch(r"(/[^/?#\s]+)+|/", prefix):
        raise ValueError("a path prefix is the start of a path, such as /tenfold, without host and query")
    return prefix.rstrip("/")


class Settings(BaseSettings):
    """The settings of the service. A test compares this class with docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="TENFOLD_", extra="ignore", frozen=True)

    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on. 0 selects a free port.")] = 8000
    uds: Annotated[Path | None, Field(description="Path of a Unix socket to listen on, instead of host and port.")] = (
        None
    )
    workers: Annotated[
        int,
        BeforeValidator(lambda value: 0 if _lower(value) == "auto" else value),
        Field(
            ge=0,
            le=64,
            description=(
                "Number of processes that speak HTTP. If it is more than one, another process owns the models. "
                "`auto` selects one for every four CPUs, and all CPUs but one with CUDA, at most 16."
            ),
        ),
    ] = 1
    weights: Annotated[Path, Field(description="Folder of the model bundle, if there is one model.")] = Path(
        "weights/resnet18-cifar10"
    )
    models: Annotated[
        tuple[Path, ...],
        NoDecode,
        BeforeValidator(_list),
        Field(description="Comma-separated folders of the bundles of several models. The first one is the default."),
    ] = ()
    engine: Annotated[
        EngineName,
        BeforeValidator(_lower),
        Field(
            description="Runtime. `auto` is `torch` on CUDA, else the first usable one of `openvino`, `onnx`, `torch`."
        ),
    ] = "auto"
    device: Annotated[
        str,
        BeforeValidator(_lower),
        Field(
            pattern=r"^(auto|cpu|cuda|cuda:\d+(,cuda:\d+)*)$",
            description="Device. `auto` selects CUDA if available. `cuda:0,cuda:1` uses two GPUs, with one queue.",
        ),
    ] = "auto"
    threads: Annotated[
        int,
        Field(
            ge=0,
            description="Inference threads on a CPU. 0 selects the CPU quota, if any, or the runtime's default.",
        ),
    ] = 0
    decode_threads: Annotated[
        int,
        Field(ge=0, description="Images that are decoded at once. 0 selects one for every CPU, at least 2."),
    ] = 0
    max_batch: Annotated[
        int,
        Field(
            ge=0,
            description="Maximum number of views in one forward pass, except for those of one image. 0 selects that of "
            "the engine.",
        ),
    ] = 0
    views: Annotated[
        int,
        Field(ge=1, le=MAX_VIEWS, description="Default of the parameter `views`: maximum number of views per image."),
    ] = 5
    min_confidence: Annotated[
        FiniteFloat,
        Field(
            ge=0,
            le=1,
            description="Default of the parameter `min_confidence`: minimum probability of an accepted image.",
        ),
    ] = 0.0
    api_keys: Annotated[
        tuple[Annotated[SecretStr, Field(min_length=1), AfterValidator(_ascii_key)], ...],
        NoDecode,
        BeforeValidator(_keys),
        Field(description="Comma-separated API keys. If set, requests other than probes need one."),
    ] = ()
    admin_keys: Annotated[
        tuple[Annotated[SecretStr, Field(min_length=1), AfterValidator(_ascii_key)], ...],
        NoDecode,
        BeforeValidator(_keys),
        Field(description="Comma-separated keys that may replace weights. Without one, nobody may."),
    ] = ()
    weights_root: Annotated[
        Path | None,
        Field(
            description="Folder below which new weights must be. The default is the one that holds the first bundle."
        ),
    ] = None
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_origin)], ...],
        NoDecode,
        BeforeValidator(_list),
        Field(description="Comma-separated origins that browsers may send requests from (CORS)."),
    ] = ()
    allowed_hosts: Annotated[
        tuple[str, ...],
        NoDecode,
        BeforeValidator(_list),
        BeforeValidator(_lower),
        Field(
            description="Comma-separated values of the header `Host`, without port, such as `example.com` or "
            "`*.example.com`. Requests with others get 400, except for probes. Without it all are accepted."
        ),
    ] = ()
    root_path: Annotated[
        str,
        AfterValidator(_path_prefix),
        Field(description="Path prefix of a proxy in front that keeps it in the paths, such as `/tenfold`."),
    ] = ""
    open_inference: Annotated[bool, Field(description="Serve the Open Inference Protocol under `/v2`.")] = True
    queue_size: Annotated[
        int, Field(ge=1, description="Maximum number of images in progress over all requests. More lead to 503.")
    ] = 256
    max_body_bytes: Annotated[int, Field(ge=1, description="Maximum size of a request body in bytes.")] = 20_000_000
    max_uploads: Annotated[
        int, Field(ge=1, description="Maximum number of requests whose body is being received. More lead to 503.")
    ] = 256
    max_connections: Annotated[
        int,
        Field(
            ge=0,
            description="Maximum number of connections of a process. More lead to 503. 0 selects the limit of open "
            "files less a reserve, at most 4000.",
        ),
    ] = 0
    max_held_bytes: Annotated[
        int, Field(ge=1, description="Maximum bytes of request bodies in memory over all requests. More lead to 503.")
    ] = 250_000_000
    max_pixels: Annotated[int, Field(ge=1, description="Maximum number of pixels (width x height) of an image.")] = (
        50_000_000
    )
    max_decode_bytes: Annotated[
        int, Field(ge=1, description="Maximum memory for images that are decoded at once, in bytes, over all requests.")
    ] = 360_000_000
    max_files: Annotated[int, Field(ge=1, description="Maximum number of images in one request.")] = 32
    timeout: Annotated[
        FiniteFloat, Field(gt=0, description="Seconds from the first byte of a request to its response.")
    ] = 10.0
    upload_timeout: Annotated[
        FiniteFloat,
        Field(
            gt=0,
            description="Seconds for the body of a request that arrives slowly but steadily. TENFOLD_TIMEOUT then "
            "counts from its end.",
        ),
    ] = 120.0
    decode_timeout: Annotated[
        FiniteFloat, Field(gt=0, description="Seconds that decoding one image may take. After that it is refused.")
    ] = 5.0
    stall_timeout: Annotated[
        FiniteFloat, Field(gt=0, description="Seconds that one batch may take. After that the process exits.")
    ] = 60.0
    keep_alive_timeout: Annotated[
        int,
        Field(
            gt=0,
            description="Seconds that an idle connection is kept open. Set it longer than a proxy in front does.",
        ),
    ] = 75
    drift_window: Annotated[
        int,
        Field(
            ge=0,
            description="Number of images per model that are compared with held-out images. 0 disables it.",
        ),
    ] = 1000
    drift_min_images: Annotated[int, Field(ge=1, description="Minimum number of images for this comparison.")] = 100
    drift_classes: Annotated[
        FiniteFloat, Field(ge=0, description="Population stability index of the predicted classes that is a drift.")
    ] = 0.1
    drift_confidence: Annotated[
        FiniteFloat, Field(ge=0, description="Population stability index of the confidence that is a drift.")
    ] = 0.1
    drift_in_distribution: Annotated[
        FiniteFloat, Field(ge=0, description="Population stability index of `in_distribution` that is a drift.")
    ] = 0.1
    feedback: Annotated[
        Path | None,
        Field(
            description="File that predictions are stored in for `POST /feedback`. Without it there is no such route."
        ),
    ] = None
    feedback_images: Annotated[bool, Field(description="Store the uploaded images too.")] = False
    feedback_rows: Annotated[
        int, Field(ge=1, description="Maximum number of predictions in the file. The oldest are removed.")
    ] = 100_000
    feedback_bytes: Annotated[
        int, Field(ge=1_000_000, description="Maximum size of the file in bytes. The oldest predictions are removed.")
    ] = 1_000_000_000
    feedback_days: Annotated[
        FiniteFloat, Field(gt=0, description="Days after which a prediction is removed from the file.")
    ] = 30.0
    drain_delay: Annotated[
        FiniteFloat,
        Field(
            ge=0,
            description="Seconds after SIGTERM during which requests are still accepted while /readyz returns 503.",
        ),
    ] = 1.0
    drain_timeout: Annotated[int, Field(ge=0, description="Seconds to finish the remaining requests after that.")] = 30
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        BeforeValidator(_lower),
        Field(description="Minimum level of log messages."),
    ] = "info"
    log_format: Annotated[
        LogFormat,
        BeforeValidator(_lower),
        Field(description="Log format. `auto` selects text on a terminal and JSON otherwise."),
    ] = "auto"
    log_probes: Annotated[
        bool, Field(description="Log successful requests for `/livez`, `/readyz`, `/healthz` and `/metrics` too.")
    ] = False

    @property
    def decoders(self) -> int:
        """Number of threads that decode images."""
        return self.decode_threads or max(LEAST_DECODE_THREADS, available_cpus())

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices, one for each lane of a model."""
        return tuple(self.device.split(","))

    @property
    def bundles(self) -> tuple[Path, ...]:
        """Folders of the model bundles. The first one is the default model."""
        return self.models or (self.weights,)

    @property
    def new_weights_root(self) -> Path:
        """Folder below which new weights must be."""
        return self.weights_root or self.bundles[0].resolve().parent

    @model_validator(mode="before")
    @classmethod
    def _clean(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values without those that are empty: an empty variable is one that is not set."""
        texts = {name: cleaned(value) if isinstance(value, str) else value for name, value in values.items()}
        return {name: value for name, value in texts.items() if value != ""}

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if self.models and "weights" in self.model_fields_set:
            raise ValueError("TENFOLD_WEIGHTS and TENFOLD_MODELS are both set: name all bundles in TENFOLD_MODELS only")
        return self

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        # With several models, each may use at least half of a limit, but not always more.
        if len(self.bundles) > 1:
            for limit, request in (("queue_size", "max_files"), ("max_held_bytes", "max_body_bytes")):
                least = 2 * getattr(self, request)
                if getattr(self, limit) < least:
                    raise ValueError(
                        f"TENFOLD_{limit.upper()} ({getattr(self, limit)}) is below twice TENFOLD_{request.upper()} "
                        f"({least}): with several models, the largest request might never fit"
                    )
        return self

    @model_validator(mode="after")
    def _check_drift_window(self) -> Self:
        if 0 < self.drift_window < self.drift_min_images:
            raise ValueError(
                f"TENFOLD_DRIFT_WINDOW ({self.drift_window}) is below TENFOLD_DRIFT_MIN_IMAGES "
                f"({self.drift_min_images}): there would never be enough images to compare"
            )
        return self

    @model_validator(mode="after")
    def _check_body_limits(self) -> Self:
        if self.max_body_bytes > self.max_held_bytes:
            raise ValueError(
                f"TENFOLD_MAX_HELD_BYTES ({self.max_held_bytes}) is below TENFOLD_MAX_BODY_BYTES "
                f"({self.max_body_bytes}): the largest request would never fit"
            )
        return self

    @model_validator(mode="after")
    def _check_image_limits(self) -> Self:
        if self.max_files > self.queue_size:
            raise ValueError(
                f"TENFOLD_QUEUE_SIZE ({self.queue_size}) is below TENFOLD_MAX_FILES ({self.max_files}): "
                "a full request would never fit"
            )
        return self


def error_messages(error: ValidationError, options: Collection[str] = ()) -> list[str]:
    """What is wrong with the settings, a sentence each, by the variables' names.

    Args:
        error: of the settings.
        options: names of the settings that an option of a command line sets. They are called by the option.
    """

    def name(setting: str) -> str:
        return f"--{setting.replace('_', '-')}" if setting in options else f"TENFOLD_{setting.upper()}"

    return [
        # No name where settings disagree.
        "".join(f"{name(str(part))}: " for part in problem["loc"][:1]) + problem["msg"].removeprefix("Value error, ")
        for problem in error.errors()
    ]


def unknown_variables() -> list[str]:
    """Warnings of environment variables that begin with TENFOLD_ and are no settings, a sentence each."""
    known = [f"TENFOLD_{name.upper()}" for name in Settings.model_fields]
    warnings = []
    for name in sorted(os.environ):
        if name.startswith("TENFOLD_") and name not in known and cleaned(os.environ[name]):
            nearest = get_close_matches(name, known, 1)
            hint = f": did you mean {nearest[0]}?" if nearest else ""
            warnings.append(f"{name} is not a setting of the service and has no effect{hint}")
    return warnings


def missing_weights(settings: Settings) -> str:
    """Where weights come from, a sentence, if no bundle is named and there is none at the default place; else ""."""
    if settings.models or "weights" in settings.model_fields_set or settings.weights.exists():
        return ""
    return (
        f"no weights are named, and {settings.weights} does not exist: set TENFOLD_WEIGHTS (or --weights) to a folder "
        "that tenfold train has written, or to one below weights in the repository, because the package contains none"
    )


def default_weights() -> dict[str, Path]:
    """The setting `weights` for a command that may run in any folder; empty if the environment names bundles."""
    if any(cleaned(os.environ.get(name, "")) for name in ("TENFOLD_MODELS", "TENFOLD_WEIGHTS")):
        return {}
    default: Path = Settings.model_fields["weights"].default
    in_checkout = Path(__file__).resolve().parents[1] / default
    return {"weights": in_checkout} if not default.exists() and in_checkout.exists() else {}
