"""A tensor survives its binary and its JSON form; anything else is refused with a V2 error."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from belvedere_platform.protocol import tensors
from belvedere_platform.protocol.errors import V2Error
from belvedere_platform.protocol.tensors import BYTES, DATATYPES, Tensor

NUMERIC = [name for name in DATATYPES if name != BYTES]
elements = st.lists(st.binary(max_size=20), max_size=8)


@st.composite
def numeric_tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(NUMERIC))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    return Tensor("X", datatype, draw(hnp.arrays(DATATYPES[datatype], shape)))


@given(numeric_tensors())
def test_numbers_survive_the_binary_form(tensor: Tensor) -> None:
    read = tensors.from_binary("X", tensor.datatype, tensor.shape, tensors.to_binary(tensor))
    assert read.shape == tensor.shape
    assert read.array.tobytes() == tensor.array.tobytes()


@given(numeric_tensors())
def test_numbers_survive_the_json_form(tensor: Tensor) -> None:
    read = tensors.from_json_data("X", tensor.datatype, tensor.shape, tensors.to_json_data(tensor))
    np.testing.assert_array_equal(read.array, tensor.array)


@given(elements)
def test_bytes_survive_the_binary_form(values: list[bytes]) -> None:
    tensor = Tensor.of_bytes("X", values)
    assert tensors.from_binary("X", BYTES, [len(values)], tensors.to_binary(tensor)).array.tolist() == values


def test_bytes_have_four_length_bytes_little_endian() -> None:
    assert tensors.encode_elements([b"ab", b""]) == b"\x02\0\0\0ab\0\0\0\0"


@given(st.binary(max_size=64), st.integers(-3, 10))
def test_any_bytes_are_elements_or_a_v2_error(buffer: bytes, count: int) -> None:
    with contextlib.suppress(V2Error):
        assert tensors.to_binary(tensors.from_binary("X", BYTES, [count], buffer)) == buffer


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("FP31", [1], [1.0], "datatype 'FP31' is not known"),
        ("INT8", [1], [300], "does not fit"),
        ("INT8", [1], ["1"], "str found"),
        ("INT64", [1], [True], "bool found"),
        ("FP32", [2], [1.0], "1 values; its shape has 2"),
        ("FP32", [2, 2], [[1.0, 2.0], 3.0], "mixes lists and values"),
        ("FP32", [-1], [1.0], "negative size"),
        ("FP32", [1] * 9, [1.0], "9 dimensions"),
        ("FP32", [1 << 40, 1 << 40], [1.0], "too many elements"),
        ("FP32", [1], None, "must be a list"),
        ("BYTES", [1], [1], "int found"),
    ],
)
def test_json_that_does_not_fit_is_refused(datatype: str, shape: list[int], data: object, words: str) -> None:
    with pytest.raises(V2Error, match=words):
        tensors.from_json_data("X", datatype, shape, data)


def test_a_length_beyond_the_data_is_refused() -> None:
    with pytest.raises(V2Error, match="element 0 has length 4294967295"):
        tensors.from_binary("X", BYTES, [1], b"\xff\xff\xff\xffabc")
