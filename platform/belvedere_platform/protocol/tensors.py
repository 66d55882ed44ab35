"""A V2 tensor: its datatypes, its binary form and its JSON form, read without trusting the sender."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from belvedere_platform.protocol.errors import invalid

BYTES = "BYTES"
DATATYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    BYTES: np.object_,
}
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 24
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Tensor:
    """A named array. BYTES is an array of objects, each of them `bytes`."""

    name: str
    datatype: str
    array: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape."""
        return self.array.shape

    @classmethod
    def of_bytes(cls, name: str, elements: Sequence[bytes]) -> Tensor:
        """Return a BYTES tensor of one dimension."""
        return cls(name, BYTES, _objects(elements, (len(elements),)))


def check_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape, or raise if no array here may have it."""
    if len(shape) > MAX_DIMENSIONS:
        raise invalid(f"input '{name}': {len(shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
    if any(size < 0 for size in shape):
        raise invalid(f"input '{name}': shape {list(shape)} has a negative size; give the sizes of the data sent")
    # Checked one by one: the product of hostile sizes is a number with millions of digits.
    if any(size > MAX_ELEMENTS for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise invalid(f"input '{name}': too many elements; at most {MAX_ELEMENTS} are allowed")
    return tuple(shape)


def check_datatype(name: str, datatype: str) -> str:
    """Return the datatype, or raise if it is none of V2's."""
    if datatype not in DATATYPES:
        raise invalid(f"input '{name}': datatype '{datatype[:32]}' is not known; it is one of {', '.join(DATATYPES)}")
    return datatype


def encode_elements(elements: Sequence[bytes]) -> bytes:
    """Return BYTES elements in binary form: each its length in 4 bytes, little endian, then itself."""
    return b"".join(part for element in elements for part in (_LENGTH.pack(len(element)), element))


def decode_elements(name: str, buffer: bytes | memoryview, count: int) -> list[bytes]:
    """Return exactly `count` BYTES elements, which must fill the buffer."""
    view, elements, offset = memoryview(buffer), [], 0
    # Every element has 4 bytes of length, so a shape that promises more than that is refused before the loop.
    if count * _LENGTH.size > len(view):
        raise invalid(f"input '{name}': {len(view)} bytes are too few for {count} elements of BYTES")
    for index in range(count):
        start = offset + _LENGTH.size
        if start > len(view):
            raise invalid(f"input '{name}': the data ends before element {index} of {count}")
        (length,) = _LENGTH.unpack_from(view, offset)
        offset = start + length
        if offset > len(view):
            raise invalid(
                f"input '{name}': element {index} has length {length}, but {len(view) - start} bytes are left"
            )
        elements.append(bytes(view[start:offset]))
    if offset != len(view):
        raise invalid(f"input '{name}': {len(view) - offset} bytes are left after {count} elements")
    return elements


def to_binary(tensor: Tensor) -> bytes:
    """Return the tensor's data as the binary extension and gRPC's raw contents have it."""
    if tensor.datatype == BYTES:
        return encode_elements(tensor.array.reshape(-1).tolist())
    return np.ascontiguousarray(tensor.array).tobytes()


def from_binary(name: str, datatype: str, shape: Sequence[int], buffer: bytes | memoryview) -> Tensor:
    """Return the tensor whose data the buffer holds, all of it."""
    dims = check_shape(name, shape)
    count = math.prod(dims)
    dtype = DATATYPES[check_datatype(name, datatype)]
    if datatype == BYTES:
        return Tensor(name, datatype, _objects(decode_elements(name, buffer, count), dims))
    expected = count * np.dtype(dtype).itemsize
    if len(buffer) != expected:
        raise invalid(f"input '{name}': {len(buffer)} bytes sent; {datatype} of shape {list(dims)} has {expected}")
    return Tensor(name, datatype, np.frombuffer(buffer, dtype).reshape(dims))


def to_json_data(tensor: Tensor) -> list[Any]:
    """Return the tensor's data as a flat JSON list."""
    flat: list[Any] = tensor.array.reshape(-1).tolist()
    if tensor.datatype != BYTES:
        return flat
    try:
        return [element.decode() for element in flat]
    except UnicodeDecodeError as error:
        raise invalid(f"'{tensor.name}' is not text; use the binary tensor extension for it") from error


def from_json_data(name: str, datatype: str, shape: Sequence[int], data: Any) -> Tensor:
    """Return the tensor that JSON gives as a flat list or as lists in lists, in row-major order."""
    dims = check_shape(name, shape)
    dtype = DATATYPES[check_datatype(name, datatype)]
    flat = _flatten(name, data, math.prod(dims))
    allowed = _json_types(datatype)
    for value in flat:
        if type(value) not in allowed:
            raise invalid(f"input '{name}': {type(value).__name__} found in data of datatype {datatype}")
    if datatype == BYTES:
        return Tensor(name, datatype, _objects([value.encode(errors="replace") for value in flat], dims))
    try:
        with np.errstate(over="ignore"):
            return Tensor(name, datatype, np.array(flat, dtype).reshape(dims))
    except (OverflowError, ValueError) as error:
        raise invalid(f"input '{name}': a value does not fit into {datatype}") from error


def _json_types(datatype: str) -> tuple[type, ...]:
    if datatype == BYTES:
        return (str,)
    if datatype == "BOOL":
        return (bool,)
    return (int, float) if datatype.startswith("FP") else (int,)


def _flatten(name: str, data: Any, count: int) -> list[Any]:
    if not isinstance(data, list):
        raise invalid(f"input '{name}': data must be a list")
    for _ in range(MAX_DIMENSIONS):
        if not any(isinstance(item, list) for item in data):
            break
        if not all(isinstance(item, list) for item in data):
            raise invalid(f"input '{name}': data mixes lists and values on one level")
        data = [value for item in data for value in item]
    if len(data) != count:
        raise invalid(f"input '{name}': data has {len(data)} values; its shape has {count}")
    return list(data)


def _objects(elements: Sequence[bytes], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(shape)
