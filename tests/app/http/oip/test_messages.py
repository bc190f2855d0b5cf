import json
import tracemalloc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.oip.messages import (
    OutputTensor,
    RequestedOutput,
    encode_response,
    json_memory,
    json_values,
    parse_object,
    parse_request,
    split,
)
from app.http.oip.tensors import array_from_json
from app.http.problems import InvalidInference

INPUT = {"name": "pixels", "shape": [2], "datatype": "UINT8", "data": [1, 2]}
BINARY = {"name": "pixels", "shape": [2], "datatype": "UINT8", "parameters": {"binary_data_size": 2}}


def parse(fields: Any, binary: bytes = b"") -> Any:
    return parse_request(json.dumps(fields).encode(), memoryview(binary))


def test_a_request_in_json() -> None:
    request = parse({"inputs": [INPUT]})
    assert (request.id, request.outputs, request.binary) == ("", [], False)
    assert (request.input.name, request.input.datatype, request.input.shape) == ("pixels", "UINT8", [2])
    assert request.input.data == [1, 2]


def test_a_request_with_binary_data() -> None:
    request = parse({"id": "7", "inputs": [BINARY], "parameters": {"binary_data_output": True}}, b"ab")
    assert (request.id, bytes(request.input.data), request.binary) == ("7", b"ab", True)


def test_the_parameters_of_an_output_take_precedence() -> None:
    request = parse(
        {
            "inputs": [INPUT],
            "parameters": {"binary_data_output": True, "sequence_id": 5},
            "outputs": [
                {"name": "logits"},
                {"name": "probabilities", "parameters": {"binary_data": False, "classification": 3}},
            ],
        }
    )
    assert request.outputs == [RequestedOutput("logits", True, 0), RequestedOutput("probabilities", False, 3)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": None}, "inputs is missing"),
        ({"inputs": {}}, "inputs is missing or not a list"),
        ({"inputs": []}, "has 0 inputs: send one"),
        ({"inputs": [INPUT] * 10_000}, "has 10000 inputs: send one"),
        ({"inputs": ["pixels"]}, "an input is not an object"),
        ({"inputs": [INPUT | {"name": 1}]}, "name is missing"),
        ({"inputs": [INPUT | {"datatype": None}]}, "datatype is missing"),
        ({"inputs": [INPUT | {"shape": 2}]}, "the shape of an input is missing"),
        ({"inputs": [INPUT | {"shape": [2.0]}]}, "send integers"),
        ({"inputs": [INPUT | {"shape": [True]}]}, "send integers"),
        ({"inputs": [{"name": "pixels", "shape": [2], "datatype": "UINT8"}]}, "has no data"),
        ({"inputs": [INPUT | {"parameters": []}]}, "parameters of an input is not an object"),
        ({"inputs": [INPUT | {"parameters": {"shared_memory_region": "a"}}]}, "shared memory is not supported"),
        ({"inputs": [INPUT | BINARY]}, "has data and binary_data_size"),
        ({"inputs": [BINARY]}, "binary_data_size is 2, but 0 bytes follow"),
        ({"id": 5}, "id is missing or not a string"),
        ({"parameters": 5}, "parameters is not an object"),
        ({"parameters": {"binary_data_output": 1}}, "neither true nor false"),
        ({"outputs": {"name": "logits"}}, "outputs is missing or not a list"),
        ({"outputs": ["logits"]}, "an output is not an object"),
        ({"outputs": [{}]}, "name is missing"),
        ({"outputs": [{"name": "logits"}] * 2}, "requested twice"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": -1}}]}, "classification is -1"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": "3"}}]}, "classification is '3'"),
        ({"outputs": [{"name": "logits", "parameters": {"binary_data": "yes"}}]}, "neither true nor false"),
        ({"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "a"}}]}, "shared memory"),
    ],
)
def test_a_malformed_request_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInference, match=says):
        parse({"inputs": [INPUT]} | change)


@pytest.mark.parametrize("size", [-1, 0, 1, 3, 2**63, 2**64 + 2, 2.0, "2", True, 10**10])
def test_another_binary_data_size_is_refused(size: Any) -> None:
    with pytest.raises(InvalidInference, match=r"binary_data_size is .*, but 2 bytes follow"):
        parse({"inputs": [BINARY | {"parameters": {"binary_data_size": size}}]}, b"ab")


def test_binary_data_that_no_input_has_are_refused() -> None:
    with pytest.raises(InvalidInference, match="2 bytes follow the JSON"):
        parse({"inputs": [INPUT]}, b"ab")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\xff\xfe{",
        b'{"a": 1} {}',
    ],
)
def test_what_is_not_a_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidInference, match="JSON object"):
        parse_object(text)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_text_is_parsed_or_refused(text: bytes) -> None:
    with suppress(InvalidInference):
        assert isinstance(parse_object(text), dict)


@pytest.mark.parametrize("header", ["-1", "+2", "2.0", "0x2", "", "²", "1" * 20, "two", "11"])
def test_a_header_length_that_is_not_up_to_the_body_is_refused(header: str) -> None:
    with pytest.raises(InvalidInference, match="Inference-Header-Content-Length is"):
        split(b"0123456789", header)


@given(st.binary(max_size=20), st.data())
def test_a_body_is_split_at_the_header_length(body: bytes, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(body)))
    text, binary = split(body, str(length))
    assert (text, bytes(binary)) == (body[:length], body[length:])
    assert split(body, None) == (body, memoryview(b""))


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=10,
)
LOGITS = np.array([[1.5, -2.0], [0.25, 8.0]], np.float32)


def test_a_response_in_json() -> None:
    outputs = [
        OutputTensor("logits", LOGITS, (2, 2), binary=False),
        OutputTensor("label", ["cat", "dög"], (2, 1), binary=False),
    ]
    body, length = encode_response(model="net", version="1a", request_id="\ud800", outputs=outputs)
    assert length is None
    assert json.loads(body) == {
        "model_name": "net",
        "model_version": "1a",
        "id": "\ud800",
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": [1.5, -2.0, 0.25, 8.0]},
            {"name": "label", "datatype": "BYTES", "shape": [2, 1], "data": ["cat", "dög"]},
        ],
    }


def test_a_response_with_binary_data_in_the_order_of_the_outputs() -> None:
    outputs = [
        OutputTensor("label", ["cat", "dog"], (2, 1), binary=True),
        OutputTensor("probabilities", LOGITS, (2, 2), binary=False),
        OutputTensor("logits", LOGITS, (2, 2), binary=True),
    ]
    body, length = encode_response(model="net", version="1a", request_id="7", outputs=outputs)
    assert length is not None
    described = json.loads(body[:length])["outputs"]
    assert [output.get("parameters") for output in described] == [
        {"binary_data_size": 14},
        None,
        {"binary_data_size": 16},
    ]
    assert [("data" in output) for output in described] == [False, True, False]
    assert body[length:] == b"\3\0\0\0cat\3\0\0\0dog" + LOGITS.tobytes()


@pytest.mark.parametrize(
    ("unit", "datatype"),
    [
        ("255", "UINT8"),
        ("0.5", "FP32"),
        ("1e1", "FP32"),
        ("123456789.123", "FP32"),
        ("[]", None),
        ("[1]", None),
        ("[1,2]", None),
        ("{}", None),
        ('{"a":1}', None),
        ('{"a":{"b":[]}}', None),
        ('"ab"', None),
        ('"\U0001f600"', None),
        ('""', None),
        ("null", None),
        ("123456789012345678901234567890", None),
    ],
)
def test_the_memory_of_json_is_estimated_from_above(unit: str, datatype: str | None) -> None:
    count = 20_000
    text = ('{"data":[' + ",".join([unit] * count) + "]}").encode()
    tracemalloc.start()
    data = parse_object(text)["data"]
    if datatype:
        array_from_json(data, datatype, [count])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= json_memory(text)


@given(JSON)
def test_the_number_of_values_is_bounded_from_above(content: object) -> None:
    def values(node: object) -> int:
        if isinstance(node, dict):
            return 1 + sum(1 + values(value) for value in node.values())
        return 1 + sum(map(values, node)) if isinstance(node, list) else 1

    assert values(content) <= json_values(json.dumps(content).encode())


def test_the_memory_of_nested_pixels_is_estimated_from_above() -> None:
    shape = [2, 64, 64, 3]
    text = json.dumps({"data": np.full(shape, 200).tolist()}, separators=(",", ":")).encode()
    tracemalloc.start()
    array_from_json(parse_object(text)["data"], "UINT8", shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= json_memory(text)
