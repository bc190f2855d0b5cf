"""Data of one tensor: JSON or binary to NumPy and back.

The binary form is that of Triton's binary tensor data extension: little-endian, row-major, without padding. An element
of type BYTES is its length as a 4-byte unsigned integer, followed by its bytes.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.http.encodings import from_base64
from app.http.problems import InvalidInference

DTYPES: Mapping[str, np.dtype[Any]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype("<f4")}
"""Data type of the protocol -> NumPy, for the numeric types of this service."""

_PYTHON_TYPES: Mapping[str, set[type]] = {"UINT8": {int}, "FP32": {int, float}}
_LENGTH = struct.Struct("<I")

Array = NDArray[np.uint8] | NDArray[np.float32]


def array_from_json(data: Any, datatype: str, shape: Sequence[int]) -> Array:
    """Numbers from JSON, flat or nested.

    Args:
        data: parsed JSON.
        datatype: a key of `DTYPES`.
        shape: of the result, checked by the calling function.

    Raises:
        InvalidInference: the data have another shape, or something else than numbers of this type.
    """
    flat = _flatten(data, shape)
    if not set(map(type, flat)) <= _PYTHON_TYPES[datatype]:
        raise InvalidInference(f"data of type {datatype} contain something else: send only numbers of this type")
    try:
        with np.errstate(over="ignore"):  # too large for FP32 becomes infinite
            return np.array(flat, DTYPES[datatype]).reshape(shape)
    except OverflowError as error:
        raise InvalidInference(f"a number is out of the range of {datatype}: send another one") from error


def array_from_bytes(data: memoryview, datatype: str, shape: Sequence[int]) -> Array:
    """Numbers from binary data, without a copy. The result is read-only.

    Args:
        data: all bytes of the tensor.
        datatype: a key of `DTYPES`.
        shape: of the result, checked by the calling function.

    Raises:
        InvalidInference: the data have another length.
    """
    dtype = DTYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InvalidInference(f"{datatype}{list(shape)} has {expected} bytes of data, not {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def elements_from_json(data: Any, shape: Sequence[int]) -> list[bytes]:
    """Elements of type BYTES from JSON, each a string in base64, flat or nested.

    Raises:
        InvalidInference: the data have another shape, or something else than strings in base64.
    """
    flat = _flatten(data, shape)
    if not set(map(type, flat)) <= {str}:
        raise InvalidInference("data of type BYTES contain something else: send strings in base64")
    elements = []
    for number, element in enumerate(flat):
        try:
            elements.append(from_base64(element))
        except ValueError as error:
            raise InvalidInference(
                f"element {number} of the input is not in base64: encode it, or send binary data"
            ) from error
    return elements


def elements_from_bytes(data: memoryview, count: int) -> list[bytes]:
    """Elements of type BYTES from binary data.

    Raises:
        InvalidInference: there are not exactly `count` elements.
    """
    elements = []
    offset = 0
    for _ in range(count):
        start = offset + _LENGTH.size
        if start > len(data):
            break
        (length,) = _LENGTH.unpack_from(data, offset)
        offset = start + length
        if offset > len(data):
            break
        elements.append(bytes(data[start:offset]))
    if len(elements) != count or offset != len(data):
        raise InvalidInference(
            f"the data of type BYTES are not {count} elements: send the length of each as 4 bytes and then its bytes"
        )
    return elements


def array_to_bytes(array: NDArray[np.float32]) -> bytes:
    """Numbers as binary data of type FP32."""
    return array.astype("<f4", copy=False).tobytes()


def elements_to_bytes(elements: Sequence[str]) -> bytes:
    """Strings as binary data of type BYTES in UTF-8."""
    encoded = [element.encode() for element in elements]
    return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in encoded))


def _flatten(data: Any, shape: Sequence[int]) -> list[Any]:
    """The elements of nested lists in row-major order. Flat lists are returned unchanged."""
    if not isinstance(data, list):
        raise InvalidInference("the data of a tensor are not a list: send its elements, flat or nested")
    level = data
    if level and isinstance(level[0], list):
        for size in shape[1:]:
            if not all(isinstance(part, list) and len(part) == size for part in level):
                raise InvalidInference(f"the lists of the data do not have the shape {list(shape)}")
            level = list(chain.from_iterable(level))
    if len(level) != math.prod(shape):
        raise InvalidInference(f"a tensor of shape {list(shape)} has {math.prod(shape)} elements, not {len(level)}")
    return level
