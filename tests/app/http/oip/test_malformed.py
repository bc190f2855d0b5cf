"""Malformed and hostile requests: each gets a 4xx with {"error"}, and memory does not grow."""

import contextlib
import gzip
import http.client
import json
import random
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.http.oip.messages import HEADER_LENGTH
from tests.app.fakes import CARD, image_file
from tests.app.running import Process, Running, process

NAME = CARD.name
PIXELS = np.zeros((1, 32, 32, 3), np.uint8).tobytes()


@dataclass(frozen=True)
class Request:
    """A request for inference.

    Attributes:
        name: of the case.
        fields: the JSON.
        data: after the JSON.
        length: value of the header; the length of the JSON if not given.
        encoding: value of Content-Encoding; none if empty.
        body: in place of the JSON and the data.
        model: suffix of the model's name.
        status: of the response.
    """

    name: str
    fields: Any = None
    data: bytes = b""
    length: str | None = None
    encoding: str = ""
    body: bytes | None = None
    model: str = ""
    status: int = 400

    def send(self, connection: http.client.HTTPConnection, model: str) -> tuple[int, bytes]:
        """Send it, and return the status and the body of the response."""
        text = b"" if self.fields is None else json.dumps(self.fields).encode()
        headers = {"Content-Encoding": self.encoding} if self.encoding else {}
        if self.data or self.length is not None:
            headers[HEADER_LENGTH] = str(len(text)) if self.length is None else self.length
        body = text + self.data if self.body is None else self.body
        connection.request("POST", f"/v2/models/{model}{self.model}/infer", body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def tensor(**changes: Any) -> dict[str, Any]:
    """A request with one input of binary pixels and these changes of the input; None leaves a field out."""
    fields = {
        "name": "pixels",
        "datatype": "UINT8",
        "shape": [1, 32, 32, 3],
        "parameters": {"binary_data_size": len(PIXELS)},
        **changes,
    }
    return {"inputs": [{name: value for name, value in fields.items() if value is not None}]}


def element(data: bytes, count: int = 1) -> dict[str, Any]:
    parameters = {"binary_data_size": len(data)}
    return tensor(name="image", datatype="BYTES", shape=[count, 1], parameters=parameters)


ANNOUNCED = struct.pack("<I", 4_000_000_000) + image_file()
BOMB = bytes(30_000_000)
SHAPES = [
    *([], [1], [1, 32, 32], [1, 32, 32, 4], [2, 32, 32, 3], [1, 3, 32, 32], [0, 32, 32, 3], [-1, 32, 32, 3]),
    *([1, -32, -32, 3], ["1", 32, 32, 3], [True, 32, 32, 3], [1.0, 32, 32, 3], [1, 2**32, 2**32, 3]),
]
SIZES = (-1, 0, 3071, 3073, 2**63, 2**64, 3072.0, "3072", [3072])
TEXT = tensor(name="image", datatype="BYTES", shape=[1, 1], parameters=None, data=["é"])
REQUESTS = [
    *(Request(f"shape {shape}", tensor(shape=shape), PIXELS) for shape in SHAPES),
    Request("10^12 images", tensor(shape=[10**12, 32, 32, 3]), PIXELS, status=413),
    *(Request(f"type {name}", tensor(datatype=name), PIXELS) for name in ("FP64", "BOOL", "BYTES", "", "uint8")),
    Request("FP32 with the bytes of UINT8", tensor(datatype="FP32"), PIXELS),
    *(Request(f"size {size}", tensor(parameters={"binary_data_size": size}), PIXELS) for size in SIZES),
    Request("too few bytes", tensor(), PIXELS[:-1]),
    Request("too many bytes", tensor(), PIXELS + b"x"),
    Request("no bytes", tensor()),
    *(Request(f"header {length}", tensor(), PIXELS, length) for length in ("0", "-1", "1e3", "x", "99999", "9" * 30)),
    Request("data and binary data", tensor(data=[0] * 3072), PIXELS),
    Request("ragged data", tensor(parameters=None, data=[[[[0, 0, 0]]]])),
    Request("nested deeper than the shape", tensor(parameters=None, data=[[[[[0]]]]])),
    Request("290,000 numbers", tensor(parameters=None, data=[0] * 290_000)),
    Request("310,000 numbers", tensor(parameters=None, data=[0] * 310_000), status=413),
    Request("strings for numbers", tensor(parameters=None, data=["0"] * 3072)),
    Request("one long string among numbers", tensor(parameters=None, data=["x" * 1_000_000] + [0] * 3071)),
    Request("a number out of range", tensor(parameters=None, data=[256] * 3072)),
    Request("a number of 300 digits", tensor(parameters=None, data=[10**300] * 3072)),
    Request("10,000 tensors", {"inputs": tensor()["inputs"] * 10_000}, PIXELS),
    Request("10,000 outputs", {**tensor(), "outputs": [{"name": str(number)} for number in range(10_000)]}, PIXELS),
    Request("an unknown output", {**tensor(), "outputs": [{"name": "features"}]}, PIXELS),
    Request("an empty body", body=b""),
    Request("no JSON", body=b"\x89PNG\r\n"),
    Request("deep nesting", body=b'{"inputs": ' + b"[" * 200_000),
    Request("truncated JSON", body=json.dumps(tensor()).encode()[:-5]),
    Request("a truncated length", element(b"\1\0"), b"\1\0", model="-image"),
    Request("a truncated element", element(ANNOUNCED), ANNOUNCED, model="-image"),
    Request("two elements for one", element(b"\0" * 8), b"\0" * 8, model="-image"),
    Request("an element of no image", element(b"\3\0\0\0cat"), b"\3\0\0\0cat", model="-image", status=415),
    Request("an image that is not base64", TEXT, model="-image"),
    Request("shared memory", tensor(parameters={"shared_memory_region": "a"})),
    Request("a gzip bomb", body=gzip.compress(BOMB), encoding="gzip", status=413),
    Request("a deflate bomb", body=zlib.compress(BOMB), encoding="deflate", status=413),
    Request("no gzip", tensor(), PIXELS, encoding="gzip"),
    Request("brotli", tensor(), PIXELS, encoding="br", status=415),
    Request("JSON that takes gigabytes", body=b'{"inputs": [' + b"{}," * 6_000_000 + b"{}]}", status=413),
]


def is_an_error(body: bytes) -> bool:
    """Whether a body is an error with a message."""
    content = json.loads(body)
    return set(content) == {"error"} and len(content["error"]) > 10


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request_: request_.name)
def test_a_malformed_request_is_an_error_of_the_client(request_: Request, running: Running) -> None:
    with contextlib.closing(connect(running.port)) as connection:
        status, body = request_.send(connection, NAME)
    assert status == request_.status, body
    assert is_an_error(body)


def test_ten_gigabytes_are_refused_when_they_are_announced(running: Running) -> None:
    with contextlib.closing(connect(running.port)) as connection:
        connection.putrequest("POST", f"/v2/models/{NAME}/infer")
        connection.putheader("Content-Length", str(10**10))
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413
        assert is_an_error(response.read())


def test_a_valid_request_for_comparison(running: Running) -> None:
    with contextlib.closing(connect(running.port)) as connection:
        status, body = Request("", tensor(), PIXELS).send(connection, NAME)
    assert status == 200, body


def memory(service: Process) -> int:
    """Anonymous memory of the process in bytes."""
    text = Path(f"/proc/{service.popen.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^RssAnon:\s+(\d+) kB$", text, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow(tiny_bundle: Path, tmp_path: Path) -> None:
    environment = {"TENFOLD_PORT": "0", "TENFOLD_DEVICE": "cpu", "TENFOLD_WEIGHTS": str(tiny_bundle)}
    with process(environment, tmp_path / "log") as service:
        service.wait_ready()

        def send_all() -> int:
            for request_ in REQUESTS:
                with contextlib.closing(connect(service.port)) as connection:
                    status, body = request_.send(connection, "tiny")
                assert status == request_.status, (request_.name, body)
            return memory(service)

        send_all()
        before = send_all()
        for _ in range(5):
            after = send_all()
        assert after < before + 20_000_000
        assert after < 900_000_000


Mutation = Callable[[random.Random, bytearray], None]


def flip(rng: random.Random, body: bytearray) -> None:
    body[rng.randrange(len(body))] ^= 1 << rng.randrange(8)


def cut(rng: random.Random, body: bytearray) -> None:
    del body[rng.randrange(len(body)) :]


def delete(rng: random.Random, body: bytearray) -> None:
    start = rng.randrange(len(body))
    del body[start : start + rng.randrange(1, 40)]


def repeat(rng: random.Random, body: bytearray) -> None:
    start = rng.randrange(len(body))
    body[start:start] = body[start : start + rng.randrange(1, 40)]


def insert(rng: random.Random, body: bytearray) -> None:
    start = rng.randrange(len(body))
    body[start:start] = rng.choice(
        [b"-", b"9" * 25, b"[", b"}", b"null", b"1e999", b'"', b"\0", b"true", b"\xff", b"{}"]
    )


# Flips twice, because the others change the length, so that nearly all of their requests are refused early.
MUTATIONS: tuple[Mutation, ...] = (flip, flip, cut, delete, repeat, insert)


def seeds() -> list[tuple[str, bytes, Mapping[str, str]]]:
    """Valid requests: the model's suffix, the body and the headers."""
    text = json.dumps(tensor()).encode()
    file = struct.pack("<I", len(image_file())) + image_file()
    image = json.dumps({"id": "7", **element(file)}).encode()
    nested = tensor(parameters=None, data=np.zeros((1, 32, 32, 3), int).tolist())
    outputs = [{"name": "logits", "parameters": {"classification": 3}}, {"name": "probabilities"}]
    return [
        ("", text + PIXELS, {HEADER_LENGTH: str(len(text))}),
        ("-image", image + file, {HEADER_LENGTH: str(len(image))}),
        ("", json.dumps({**nested, "outputs": outputs}).encode(), {}),
        ("", gzip.compress(text + PIXELS, mtime=0), {HEADER_LENGTH: str(len(text)), "Content-Encoding": "gzip"}),
    ]


@pytest.mark.parametrize("count", [1_000, pytest.param(5_000, marks=pytest.mark.slow)])
def test_mutated_requests_never_fail_the_service(count: int, running: Running) -> None:
    rng = random.Random(count)
    statuses = Counter[int]()
    valid = seeds()
    connection = connect(running.port)
    for number in range(count):
        suffix, body, headers = valid[number % len(valid)]
        mutated = bytearray(body)
        for _ in range(rng.choice([1, 1, 2, 8])):
            # Mostly at the beginning, where the JSON is.
            end = 200 if rng.random() < 0.7 else len(mutated)
            head, rest = mutated[:end], mutated[end:]
            if head:
                rng.choice(MUTATIONS)(rng, head)
            mutated = head + rest
        if rng.random() < 0.1 and HEADER_LENGTH in headers:
            headers = {**headers, HEADER_LENGTH: str(rng.choice([0, 1, len(body), len(body) + 1, 10**9, -5]))}
        connection.request("POST", f"/v2/models/{NAME}{suffix}/infer", bytes(mutated), dict(headers))
        response = connection.getresponse()
        content = response.read()
        statuses[response.status] += 1
        assert response.status < 500, (number, mutated, content)
        assert response.status == 200 or is_an_error(content)
    connection.close()
    assert statuses[200] > count / 50, "requests that are never valid are too weak"
    assert statuses[400] > count / 5
    assert running.client.get("/v2/health/live").status_code == 200
