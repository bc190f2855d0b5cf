import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.cpus import available_cpus
from app.settings import Settings, error_messages
from model import MAX_VIEWS
from tests.app.running import ROOT

# Each setting with a value that is not its default.
VALUES: dict[str, tuple[str, Any]] = {
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "uds": ("runs/socket", Path("runs/socket")),
    "workers": ("2", 2),
    "weights": ("weights/mine", Path("weights/mine")),
    "models": ("weights/a, b", (Path("weights/a"), Path("b"))),
    "engine": ("torch", "torch"),
    "device": ("cuda", "cuda"),
    "threads": ("3", 3),
    "decode_threads": ("5", 5),
    "max_batch": ("7", 7),
    "views": ("3", 3),
    "min_confidence": ("0.5", 0.5),
    "api_keys": ("one, two,", (SecretStr("one"), SecretStr("two"))),
    "admin_keys": ("root,", (SecretStr("root"),)),
    "weights_root": ("bundles", Path("bundles")),
    "cors_origins": ("https://a.example,http://b", ("https://a.example", "http://b")),
    "allowed_hosts": ("A.example, *.b.example", ("a.example", "*.b.example")),
    "root_path": ("tenfold/a/", "/tenfold/a"),
    "open_inference": ("false", False),
    "queue_size": ("300", 300),
    "max_body_bytes": ("1000", 1000),
    "max_uploads": ("8", 8),
    "max_held_bytes": ("100000000", 100_000_000),
    "max_pixels": ("2000", 2000),
    "max_decode_bytes": ("2000000", 2_000_000),
    "max_files": ("9", 9),
    "timeout": ("2.5", 2.5),
    "upload_timeout": ("60", 60.0),
    "decode_timeout": ("3", 3.0),
    "max_connections": ("500", 500),
    "stall_timeout": ("30.5", 30.5),
    "drain_delay": ("0", 0.0),
    "keep_alive_timeout": ("9", 9),
    "drain_timeout": ("4", 4),
    "drift_window": ("500", 500),
    "drift_min_images": ("50", 50),
    "drift_classes": ("0.2", 0.2),
    "drift_confidence": ("0.3", 0.3),
    "drift_in_distribution": ("0.4", 0.4),
    "feedback": ("runs/feedback.db", Path("runs/feedback.db")),
    "feedback_images": ("true", True),
    "feedback_rows": ("10", 10),
    "feedback_bytes": ("2000000", 2_000_000),
    "feedback_days": ("0.5", 0.5),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "log_probes": ("true", True),
}


def read_settings(**environment: str) -> dict[str, str]:
    """The settings that a new process reads from its environment: name -> repr."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TENFOLD_")}
    program = "from app.settings import Settings\nfor name, value in Settings(): print(name, repr(value), sep='=')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", maxsplit=1) for line in done.stdout.splitlines())


def test_every_setting_is_read_from_its_variable() -> None:
    assert set(VALUES) == set(Settings.model_fields), "a setting without a value here"
    variables = {f"TENFOLD_{name.upper()}": text for name, (text, _) in VALUES.items()}
    models = variables.pop("TENFOLD_MODELS")
    found = read_settings(**variables)
    del variables["TENFOLD_WEIGHTS"]  # only one of the two may be set
    found["models"] = read_settings(**variables, TENFOLD_MODELS=models)["models"]
    assert found == {name: repr(value) for name, (_, value) in VALUES.items()}
    defaults = read_settings(PORT="1", TENFOLD_PORTS="2")  # not names of settings
    assert defaults == {name: repr(field.default) for name, field in Settings.model_fields.items()}
    assert not [name for name in VALUES if found[name] == defaults[name]], "values equal to the defaults"


def test_values_are_read_as_compose_helm_and_env_files_pass_them() -> None:
    empty = {f"TENFOLD_{name.upper()}": value for name, value in zip(VALUES, ["", " ", "\r", '""'] * 20, strict=False)}
    defaults = {name: repr(field.default) for name, field in Settings.model_fields.items()}
    assert read_settings(**empty) == defaults
    decorated = {
        "engine": "OpenVINO",
        "device": "CPU\r",
        "log_level": "INFO",
        "log_format": "Json",
        "workers": "AUTO",
        "port": '"9000"',
        "timeout": " 2.5\r",
        "open_inference": "FALSE\r",
        "weights": "'weights/mine'\r",
        "api_keys": "one,, 'two' ,",
        "admin_keys": 'ro"ot',
        "cors_origins": '"https://a.example, http://b"',
    }
    found = read_settings(**{f"TENFOLD_{name.upper()}": value for name, value in decorated.items()})
    expected = {
        "engine": "openvino",
        "device": "cpu",
        "log_level": "info",
        "log_format": "json",
        "workers": 0,
        "port": 9000,
        "timeout": 2.5,
        "open_inference": False,
        "weights": Path("weights/mine"),
        "api_keys": (SecretStr("one"), SecretStr("two")),
        "admin_keys": (SecretStr('ro"ot'),),
        "cors_origins": ("https://a.example", "http://b"),
    }
    assert found == {**defaults, **{name: repr(value) for name, value in expected.items()}}


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTPS://Page.Example:443", "https://page.example"),
        ("http://page.example:80/", "http://page.example"),
        ("https://page.example:80", "https://page.example:80"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("*", "*"),
        ("null", "null"),
    ],
)
def test_an_origin_is_compared_as_browsers_send_it(given: str, origin: str) -> None:
    assert Settings.model_validate({"cors_origins": given}).cors_origins == (origin,)


@pytest.mark.parametrize(
    "given",
    [
        "http://page.example/app",
        "page.example",
        "localhost:3000",
        "http://",
        "http://*.page.example",
        "http://user@page.example",
        "http://page.example?",
        "http://page.example#",
        "http://page.example:99999",
        "http://page.example:x",
        "http://pagé.example",
        "http://a http://b",
        '["http://page.example"]',
    ],
)
def test_what_no_browser_sends_as_an_origin_is_an_error(given: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"cors_origins": ("http://a", given)})
    (message,) = error_messages(caught.value)
    assert message.startswith(f"TENFOLD_CORS_ORIGINS: {given} is not an origin: write scheme, host and port only")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "abc"),
        ("port", "-1"),
        ("port", "65536"),
        ("engine", "tvm"),
        ("device", "tpu"),
        ("device", "cuda:0,cpu"),
        ("threads", "-1"),
        ("decode_threads", "-1"),
        ("max_batch", "-1"),
        ("max_decode_bytes", "0"),
        ("views", "0"),
        ("views", str(MAX_VIEWS + 1)),
        ("views", "1.5"),
        ("views", "x"),
        ("min_confidence", "-0.1"),
        ("min_confidence", "1.1"),
        ("min_confidence", "nan"),
        ("min_confidence", "inf"),
        ("min_confidence", "x"),
        ("queue_size", "0"),
        ("max_body_bytes", "0"),
        ("max_pixels", "0"),
        ("max_files", "0"),
        ("timeout", "0"),
        ("timeout", "-1"),
        ("timeout", "nan"),
        ("timeout", "inf"),
        ("upload_timeout", "0"),
        ("decode_timeout", "0"),
        ("max_connections", "-1"),
        ("stall_timeout", "0"),
        ("stall_timeout", "nan"),
        ("workers", "-1"),
        ("workers", "all"),
        ("max_uploads", "0"),
        ("max_held_bytes", "0"),
        ("log_format", "xml"),
        ("drain_delay", "-0.1"),
        ("keep_alive_timeout", "0"),
        ("drain_delay", "inf"),
        ("drain_timeout", "-1"),
        ("log_level", "loud"),
    ],
)
def test_a_value_out_of_range_is_an_error_of_its_setting(name: str, value: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({name: value})
    assert [problem["loc"] for problem in caught.value.errors()] == [(name,)]


def test_decoding_has_a_thread_for_every_cpu_and_at_least_two() -> None:
    assert Settings().decoders == max(2, available_cpus())
    assert Settings(decode_threads=1).decoders == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": "abc"}, "TENFOLD_PORT: Input should be a valid integer"),
        ({"views": "0"}, "TENFOLD_VIEWS: Input should be greater than or equal to 1"),
        ({"min_confidence": "2"}, "TENFOLD_MIN_CONFIDENCE: Input should be less than or equal to 1"),
        ({"min_confidence": "nan"}, "TENFOLD_MIN_CONFIDENCE: Input should be a finite number"),
        ({"max_files": "9", "queue_size": "8"}, "TENFOLD_QUEUE_SIZE (8) is below TENFOLD_MAX_FILES (9)"),
    ],
)
def test_an_invalid_value_is_reported_by_the_name_of_its_variable(values: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    (found,) = error_messages(caught.value)
    assert found.startswith(message)
    (found,) = error_messages(caught.value, options=["max_files"])
    assert found.startswith(message), "this option sets another one"


def test_an_invalid_option_is_reported_by_its_name() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"decode_threads": "-1"})
    (found,) = error_messages(caught.value, options=["decode_threads"])
    assert found.startswith("--decode-threads: Input should be greater than or equal to 0")


def test_a_queue_below_the_images_of_one_request_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"TENFOLD_QUEUE_SIZE \(7\) is below TENFOLD_MAX_FILES \(8\)"):
        Settings(queue_size=7, max_files=8)
    assert Settings(queue_size=8, max_files=8).queue_size == 8


@pytest.mark.parametrize("keys", ["two words", "ключ", "a\tb"])
def test_a_key_that_no_header_can_contain_is_an_error_and_not_shown(keys: str) -> None:
    with pytest.raises(ValidationError, match="a key is made of ASCII") as caught:
        Settings.model_validate({"api_keys": keys})
    assert caught.value.errors()[0]["loc"] == ("api_keys", 0)


def test_keys_are_not_shown() -> None:
    assert "sesame" not in repr(Settings.model_validate({"api_keys": "sesame"}))


def test_memory_below_the_largest_request_is_an_error() -> None:
    with pytest.raises(ValidationError, match=r"TENFOLD_MAX_HELD_BYTES \(7\) is below TENFOLD_MAX_BODY_BYTES \(8\)"):
        Settings(max_held_bytes=7, max_body_bytes=8)
    assert Settings(max_held_bytes=8, max_body_bytes=8).max_held_bytes == 8


@pytest.mark.parametrize(
    ("name", "value"), [("views", 1), ("views", MAX_VIEWS), ("min_confidence", 0.0), ("min_confidence", 1.0)]
)
def test_the_bounds_of_a_range_are_valid(name: str, value: float) -> None:
    assert getattr(Settings.model_validate({name: str(value)}), name) == value


def test_settings_cannot_be_changed_later() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1


def test_every_setting_is_described() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert re.fullmatch(r"[A-Z`].*\.", field.description), f"{name} is described by a sentence"


def test_the_bundles_are_those_of_models_or_the_one_of_weights() -> None:
    assert Settings().bundles == (Path("weights/resnet18-cifar10"),)
    assert Settings.model_validate({"weights": "a"}).bundles == (Path("a"),)
    assert Settings.model_validate({"models": "a,b"}).bundles == (Path("a"), Path("b"))
    assert Settings.model_validate({"models": "", "weights": "a"}).bundles == (Path("a"),)
    with pytest.raises(ValidationError, match="TENFOLD_WEIGHTS and TENFOLD_MODELS are both set"):
        Settings.model_validate({"models": "a,b", "weights": "a"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"queue_size": 15, "max_files": 8}, r"TENFOLD_QUEUE_SIZE \(15\) is below twice TENFOLD_MAX_FILES \(16\)"),
        (
            {"max_held_bytes": 15, "max_body_bytes": 8},
            r"TENFOLD_MAX_HELD_BYTES \(15\) is below twice TENFOLD_MAX_BODY_BYTES \(16\)",
        ),
    ],
)
def test_with_several_models_the_largest_request_must_fit_into_half_of_a_limit(
    values: dict[str, Any], message: str
) -> None:
    assert Settings.model_validate(values)
    with pytest.raises(ValidationError, match=message):
        Settings.model_validate({"models": "a,b", **values})


@pytest.mark.parametrize("name", ["api_keys", "admin_keys"])
@pytest.mark.parametrize("text", [",", " , ", "'',''"])
def test_a_list_without_a_key_does_not_switch_keys_off(name: str, text: str) -> None:
    with pytest.raises(ValidationError, match="it names no key"):
        Settings.model_validate({name: text})
