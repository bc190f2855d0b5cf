"""Requests and responses of inference: JSON, optionally followed by the binary data of tensors."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from app.http.oip import tensors
from app.http.problems import InvalidInference

HEADER_LENGTH = "Inference-Header-Content-Length"
"""The header with the number of bytes of the JSON. It is required if binary data follow."""

# Bytes of memory at most for parsed JSON and what `tensors` makes of it: per byte of text, and more per character that
# begins a value. A test compares them with the memory that CPython uses.
_PER_BYTE = 6
_PER_CHARACTER = {b",": 64, b":": 128, b"[": 120, b"{": 250}


@dataclass(frozen=True, slots=True)
class Tensor:
    """The input tensor of a request.

    Attributes:
        name: of the input.
        datatype: of the protocol, such as "UINT8".
        shape: integers, not checked further.
        data: parsed JSON, or binary.
    """

    name: str
    datatype: str
    shape: list[int]
    data: Any | memoryview


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request names.

    Attributes:
        name: of the output.
        binary: whether to return binary data.
        classes: if not 0, the number of classes to return in place of the tensor.
    """

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request for inference.

    Attributes:
        id: of the client; empty if it sent none.
        input: the only tensor, since every model of this service has one input.
        outputs: that are requested, in order; empty for all.
        binary: whether outputs that are not requested by name are returned as binary data.
    """

    id: str
    input: Tensor
    outputs: list[RequestedOutput]
    binary: bool


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """An output tensor of a response.

    Attributes:
        name: of the output.
        values: float32, or strings in row-major order.
        shape: of the tensor.
        binary: whether to send binary data.
    """

    name: str
    values: NDArray[np.float32] | list[str]
    shape: tuple[int, ...]
    binary: bool


def split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """Separate the JSON of a body from the binary data.

    Args:
        body: not compressed.
        header_length: `HEADER_LENGTH`; None without this header.

    Returns:
        The JSON, and the data. The JSON is empty in a raw binary request, whose body is the data of the only input.

    Raises:
        InvalidInference: the header is not a number up to the length of the body.
    """
    if header_length is None:
        return body, memoryview(b"")
    if not (header_length.isascii() and header_length.isdecimal() and len(header_length) < 16):
        _refuse(f"{HEADER_LENGTH} is not a number: send the number of bytes of the JSON")
    length = int(header_length)
    if length > len(body):
        _refuse(
            f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes: send the number of bytes of the JSON"
        )
    return body[:length], memoryview(body)[length:]


def json_memory(text: bytes) -> int:
    """Estimate the bytes of memory to parse JSON and to convert its data, without parsing it."""
    return _PER_BYTE * len(text) + sum(text.count(character) * size for character, size in _PER_CHARACTER.items())


def json_values(text: bytes) -> int:
    """An upper bound on the number of values and keys in JSON, without parsing it."""
    return 1 + sum(text.count(character) for character in _PER_CHARACTER)


def parse_object(text: bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        InvalidInference: it is not valid JSON, too deeply nested, or not an object.
    """
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # also of UTF-8, and of integers with thousands of digits
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidInference(f"the body is not valid JSON{where}: send a JSON object") from error
    if not isinstance(found, dict):
        _refuse("the body is not a JSON object: send one")
    return found


def parse_request(text: bytes, binary: memoryview) -> InferRequest:
    """Parse a request for inference.

    Args:
        text: its JSON.
        binary: the data after it.

    Raises:
        InvalidInference: it is malformed.
    """
    fields = parse_object(text)
    inputs = _list(fields.get("inputs"), "inputs")
    if len(inputs) != 1:
        _refuse(f"the request has {len(inputs)} inputs: send one")
    parameters = _object(fields.get("parameters"), "parameters")
    default = _boolean(parameters, "binary_data_output", False)
    outputs = [_requested(entry, default) for entry in _list(fields.get("outputs") or [], "outputs")]
    names = [output.name for output in outputs]
    if len(set(names)) != len(names):
        _refuse("an output is requested twice: name each once")
    return InferRequest(_string(fields, "id", ""), _input(inputs[0], binary), outputs, default)


def raw_request(name: str, datatype: str, shape: list[int], data: memoryview) -> InferRequest:
    """A request without JSON, for all outputs as binary data, as Triton returns them.

    Args:
        name: of the only input.
        datatype: of the protocol.
        shape: with a batch of one.
        data: of the tensor.
    """
    return InferRequest("", Tensor(name, datatype, shape, data), [], binary=True)


def encode_response(
    *, model: str, version: str, request_id: str, outputs: Iterable[OutputTensor]
) -> tuple[bytes, int | None]:
    """Encode a response.

    Args:
        model: name of the model.
        version: of the model.
        request_id: of the request.
        outputs: in order.

    Returns:
        The body, and the number of bytes of its JSON, or None if no binary data follow.
    """
    described, pieces = [], []
    for output in outputs:
        entry, data = _encoded(output)
        described.append(entry)
        if data is not None:
            pieces.append(data)
    fields = {"model_name": model, "model_version": version, "id": request_id, "outputs": described}
    text = json.dumps(fields, separators=(",", ":")).encode()
    return b"".join((text, *pieces)), len(text) if pieces else None


def _encoded(output: OutputTensor) -> tuple[dict[str, Any], bytes | None]:
    """The JSON of an output, and its binary data if they are not in the JSON."""
    values = output.values
    datatype = "BYTES" if isinstance(values, list) else "FP32"
    entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": output.shape}
    if not output.binary:
        return {**entry, "data": values if isinstance(values, list) else values.ravel().tolist()}, None
    data = tensors.elements_to_bytes(values) if isinstance(values, list) else tensors.array_to_bytes(values)
    return {**entry, "parameters": {"binary_data_size": len(data)}}, data


def _input(entry: Any, binary: memoryview) -> Tensor:
    fields = _object(entry, "an input")
    name, datatype = _string(fields, "name"), _string(fields, "datatype")
    shape = _list(fields.get("shape"), "the shape of an input")
    if not all(type(size) is int for size in shape):
        _refuse("a shape contains something else than integers: send integers")
    parameters = _object(fields.get("parameters"), "the parameters of an input")
    if "shared_memory_region" in parameters:
        _refuse("shared memory is not supported: send the data")
    size = parameters.get("binary_data_size")
    if size is None:
        if binary:
            _refuse(f"{len(binary)} bytes follow the JSON, but the input has no binary_data_size: send their number")
        if "data" not in fields:
            _refuse(f"the input {name!r} has no data: send data, or binary_data_size and {HEADER_LENGTH}")
        return Tensor(name, datatype, shape, fields["data"])
    if "data" in fields:
        _refuse(f"the input {name!r} has data and binary_data_size: send one of them")
    if type(size) is not int or size != len(binary):
        _refuse(
            f"binary_data_size is {size!r:.40}, but {len(binary)} bytes follow the JSON: send their number, and "
            f"the number of bytes of the JSON as {HEADER_LENGTH}"
        )
    return Tensor(name, datatype, shape, binary)


def _requested(entry: Any, binary: bool) -> RequestedOutput:
    fields = _object(entry, "an output")
    parameters = _object(fields.get("parameters"), "the parameters of an output")
    if "shared_memory_region" in parameters:
        _refuse("shared memory is not supported: request the data")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        _refuse(f"classification is {classes!r:.40}: send the number of classes to return")
    return RequestedOutput(_string(fields, "name"), _boolean(parameters, "binary_data", binary), classes)


def _object(value: Any, what: str) -> dict[str, Any]:
    """An object; empty if there is none."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(f"{what} is not an object: send one")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(f"{what} is missing or not a list: send one")
    return value


def _string(fields: dict[str, Any], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        _refuse(f"{name} is missing or not a string: send one")
    return value


def _boolean(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        _refuse(f"{name} is neither true nor false: send one of them")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _refuse(message: str) -> NoReturn:
    raise InvalidInference(message)
