import base64
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from app.http.oip.tensors import (
    DTYPES,
    array_from_bytes,
    array_from_json,
    array_to_bytes,
    elements_from_bytes,
    elements_from_json,
    elements_to_bytes,
)
from app.http.problems import InvalidInference

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=5)
NUMBERS = st.one_of(arrays.arrays(np.uint8, SHAPES), arrays.arrays(np.float32, SHAPES, elements={"allow_nan": False}))
NAMES = {np.dtype(np.uint8): "UINT8", np.dtype(np.float32): "FP32"}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(NUMBERS, st.booleans())
def test_numbers_survive_json_flat_and_nested(array: np.ndarray[Any, Any], nested: bool) -> None:
    data = array.tolist() if nested else array.ravel().tolist()
    found = array_from_json(data, NAMES[array.dtype], array.shape)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@given(NUMBERS)
def test_numbers_survive_binary_data(array: np.ndarray[Any, Any]) -> None:
    found = array_from_bytes(memoryview(array.tobytes()), NAMES[array.dtype], array.shape)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_binary_numbers_are_little_endian_and_not_copied() -> None:
    data = struct.pack("<2f", 1.0, -2.5)
    found = array_from_bytes(memoryview(data), "FP32", [2])
    assert found.tolist() == [1.0, -2.5]
    assert not found.flags.writeable
    assert array_to_bytes(np.array([1.0, -2.5], np.float32)) == data


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_elements_are_read_as_tritons_client_writes_them(elements: list[bytes]) -> None:
    written = serialize_byte_tensor(np.array(elements, np.object_)).item()
    assert elements_from_bytes(memoryview(written), len(elements)) == elements


@given(st.lists(st.text(max_size=10), min_size=1, max_size=5))
def test_elements_are_written_as_tritons_client_reads_them(elements: list[str]) -> None:
    read = deserialize_bytes_tensor(elements_to_bytes(elements)).tolist()
    assert [element.decode() for element in read] == elements


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_elements_in_json_are_base64(elements: list[bytes]) -> None:
    encoded = [base64.b64encode(element).decode() for element in elements]
    assert elements_from_json(encoded, [len(encoded), 1]) == elements
    assert elements_from_json([[text] for text in encoded], [len(encoded), 1]) == elements


@given(ANYTHING, st.sampled_from(sorted(DTYPES)), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_any_json_is_read_or_refused(data: Any, datatype: str, shape: list[int]) -> None:
    try:
        found = array_from_json(data, datatype, shape)
    except InvalidInference:
        return
    assert found.shape == tuple(shape)
    assert found.dtype == DTYPES[datatype]


@given(ANYTHING)
def test_any_json_is_read_as_elements_or_refused(data: Any) -> None:
    try:
        found = elements_from_json(data, [2, 1])
    except InvalidInference:
        return
    assert len(found) == 2


@given(st.binary(max_size=40), st.integers(0, 4))
def test_any_bytes_are_read_as_elements_or_refused(data: bytes, count: int) -> None:
    try:
        found = elements_from_bytes(memoryview(data), count)
    except InvalidInference:
        return
    assert b"".join(struct.pack("<I", len(element)) + element for element in found) == data


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([0, 1, 2], "has 4 elements, not 3"),
        ([0, 1, 2, 3, 4], "has 4 elements, not 5"),
        ([[0, 1], [2]], r"do not have the shape \[2, 2\]"),
        ([[0, 1], 2], r"do not have the shape \[2, 2\]"),
        ([[0, 1]], "has 4 elements, not 2"),
        ([0, 1, 2, [3]], "only numbers of this type"),
        ([[[0], [1]], [[2], [3]]], "only numbers of this type"),
        ([0, 1, 2, "3"], "only numbers of this type"),
        ([0, 1, 2, True], "only numbers of this type"),
        ([0, 1, 2, None], "only numbers of this type"),
        ([0, 1, 2, 1.5], "only numbers of this type"),
        ([0, 1, 2, 256], "out of the range of UINT8"),
        ([0, 1, 2, -1], "out of the range of UINT8"),
        ([0, 1, 2, 10**400], "out of the range of UINT8"),
        ({"0": 1}, "not a list"),
        ("0123", "not a list"),
        (None, "not a list"),
    ],
)
def test_data_of_another_form_are_refused(data: Any, says: str) -> None:
    with pytest.raises(InvalidInference, match=says):
        array_from_json(data, "UINT8", [2, 2])


def test_a_number_beyond_fp32_is_infinite_or_refused() -> None:
    assert array_from_json([1e300], "FP32", [1]).tolist() == [np.inf]
    with pytest.raises(InvalidInference, match="out of the range of FP32"):
        array_from_json([10**400], "FP32", [1])


@pytest.mark.parametrize("size", [0, 3, 5, 400])
def test_binary_data_of_another_length_are_refused(size: int) -> None:
    with pytest.raises(InvalidInference, match=f"has 4 bytes of data, not {size}"):
        array_from_bytes(memoryview(bytes(size)), "UINT8", [2, 2])


@pytest.mark.parametrize(
    "data",
    [b"", b"\1\0\0", b"\1\0\0\0", b"\2\0\0\0x", b"\1\0\0\0xx", b"\xff\xff\xff\xffx", b"\0\0\0\0\0\0\0\0"],
    ids=["empty", "no length", "no bytes", "too few bytes", "more bytes", "four gigabytes", "two elements"],
)
def test_truncated_elements_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInference, match="are not 1 elements"):
        elements_from_bytes(memoryview(data), 1)


@pytest.mark.parametrize("text", ["a", "é===", "aGVsb", "aGVs.bG8=", "aGVsbG8=aGVsbG8="])
def test_a_string_that_is_not_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidInference, match="not in base64"):
        elements_from_json([text], [1, 1])
