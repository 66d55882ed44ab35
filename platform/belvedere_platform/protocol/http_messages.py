"""V2 over HTTP: JSON bodies, with tensors in JSON or behind it in binary form."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import to_json

from belvedere_platform.protocol import tensors
from belvedere_platform.protocol.errors import invalid
from belvedere_platform.protocol.messages import InferRequest, InferResponse, RequestedOutput
from belvedere_platform.protocol.tensors import BYTES, Tensor

HEADER_LENGTH = "inference-header-content-length"
"""Length of the JSON part of a body that has binary tensors behind it."""
MAX_TENSORS = 64
MAX_JSON_BYTES = 64 << 20

_M = TypeVar("_M", bound=BaseModel)
Word = Annotated[str, StringConstraints(max_length=256)]
Size = Annotated[int, Field(ge=-(1 << 62), le=1 << 62)]


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class TensorBody(_Body):
    """An input or output."""

    name: Word
    datatype: Word
    shape: Annotated[list[Size], Field(max_length=64)]
    parameters: dict[Word, Any] = Field(default_factory=dict)
    data: Any = None


class RequestedOutputBody(_Body):
    """An output the client asks for."""

    name: Word
    parameters: dict[Word, Any] = Field(default_factory=dict)


class InferRequestBody(_Body):
    """The JSON part of a request."""

    id: Word = ""
    parameters: dict[Word, Any] = Field(default_factory=dict)
    inputs: Annotated[list[TensorBody], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[list[RequestedOutputBody], Field(max_length=MAX_TENSORS, default_factory=list)]


class InferResponseBody(_Body):
    """The JSON part of an answer."""

    model_name: Word
    model_version: Word = ""
    id: Word = ""
    parameters: dict[Word, Any] = Field(default_factory=dict)
    outputs: Annotated[list[TensorBody], Field(max_length=MAX_TENSORS)]


def parse_infer_request(model: str, version: str, body: bytes, header_length: str | None) -> InferRequest:
    """Return the request in an HTTP body. `header_length` is the header of that name, None when absent."""
    text, binary = _split(body, header_length)
    parsed = _validate(InferRequestBody, text)
    binary_default = _flag(parsed.parameters, "binary_data_output")
    return InferRequest(
        model_name=model,
        model_version=version,
        id=parsed.id,
        inputs=_parse_tensors(parsed.inputs, binary),
        outputs=tuple(
            RequestedOutput(name=output.name, binary=_flag(output.parameters, "binary_data", binary_default))
            for output in parsed.outputs
        ),
        parameters={k: v for k, v in parsed.parameters.items() if isinstance(v, (bool, int, float, str))},
    )


def render_infer_request(request: InferRequest, *, binary: bool = True) -> tuple[bytes, int | None]:
    """Return body and header length (None: JSON only) of a request."""
    head: dict[str, Any] = {"id": request.id} if request.id else {}
    head["parameters"] = {**request.parameters, "binary_data_output": binary}
    if request.outputs:
        head["outputs"] = [{"name": output.name} for output in request.outputs]
    inputs, blobs = _render_tensors(request.inputs, [binary] * len(request.inputs))
    return _join({**head, "inputs": inputs}, blobs)


def wants_binary(request: InferRequest, output: str) -> bool:
    """Whether the client asked for this output in binary form."""
    for requested in request.outputs:
        if requested.name == output and requested.binary is not None:
            return requested.binary
    return bool(request.parameters.get("binary_data_output", False))


def render_infer_response(request: InferRequest, response: InferResponse) -> tuple[bytes, int | None]:
    """Return body and header length (None: JSON only) of the answer to a request."""
    flags = [wants_binary(request, output.name) for output in response.outputs]
    outputs, blobs = _render_tensors(response.outputs, flags)
    head: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        head["id"] = response.id
    return _join({**head, "outputs": outputs}, blobs)


def parse_infer_response(body: bytes, header_length: str | None) -> InferResponse:
    """Return the answer in an HTTP body."""
    text, binary = _split(body, header_length)
    parsed = _validate(InferResponseBody, text)
    return InferResponse(
        model_name=parsed.model_name,
        model_version=parsed.model_version,
        id=parsed.id,
        outputs=_parse_tensors(parsed.outputs, binary),
    )


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    if header_length is None:
        length = len(body)
    elif not (header_length.isascii() and header_length.isdigit() and len(header_length) <= 12):
        raise invalid(f"{HEADER_LENGTH}: '{header_length[:32]}' is not a number of bytes")
    else:
        length = int(header_length)
    if length > len(body):
        raise invalid(f"{HEADER_LENGTH} is {length}, but the body has {len(body)} bytes")
    if length > MAX_JSON_BYTES:
        raise invalid(f"the JSON part has {length} bytes; at most {MAX_JSON_BYTES} are allowed")
    return body[:length], memoryview(body)[length:]


def _validate(model: type[_M], text: bytes) -> _M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part)[:64] for part in first["loc"]) or "body"
        raise invalid(f"{where}: {first['msg'][:256]}") from error


def _flag(parameters: dict[str, Any], name: str, default: bool | None = None) -> bool | None:
    value = parameters.get(name, default)
    if value is not None and not isinstance(value, bool):
        raise invalid(f"parameters.{name} must be true or false")
    return value


def _parse_tensors(bodies: list[TensorBody], binary: memoryview) -> tuple[Tensor, ...]:
    parsed, offset = [], 0
    for body in bodies:
        size = body.parameters.get("binary_data_size")
        if size is None:
            parsed.append(_parse_json_tensor(body))
            continue
        if type(size) is not int or not 0 <= size <= len(binary) - offset:
            raise invalid(f"input '{body.name}': binary_data_size must be a number of bytes that the body has")
        parsed.append(tensors.from_binary(body.name, body.datatype, body.shape, binary[offset : offset + size]))
        offset += size
    if offset != len(binary):
        raise invalid(f"{len(binary) - offset} bytes behind the JSON belong to no tensor")
    return tuple(parsed)


def _parse_json_tensor(body: TensorBody) -> Tensor:
    tensor = tensors.from_json_data(body.name, body.datatype, body.shape, body.data)
    if body.datatype != BYTES or body.parameters.get("content_type") != "base64":
        return tensor
    try:
        elements = [base64.b64decode(element, validate=True) for element in tensor.array.reshape(-1).tolist()]
    except binascii.Error as error:
        raise invalid(f"input '{body.name}': content_type is base64, but an element is not: {error}") from error
    return Tensor(body.name, BYTES, Tensor.of_bytes(body.name, elements).array.reshape(tensor.shape))


def _render_tensors(items: tuple[Tensor, ...], binary: list[bool]) -> tuple[list[dict[str, Any]], list[bytes]]:
    bodies: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for tensor, as_binary in zip(items, binary, strict=True):
        body: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if as_binary:
            blobs.append(tensors.to_binary(tensor))
            body["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            body["data"] = tensors.to_json_data(tensor)
        bodies.append(body)
    return bodies, blobs


def _join(head: dict[str, Any], blobs: list[bytes]) -> tuple[bytes, int | None]:
    text = to_json(head, inf_nan_mode="null")
    return (b"".join([text, *blobs]), len(text)) if blobs else (text, None)


def error_body(message: str) -> bytes:
    """Return the body of a failed request."""
    return _Error(error=message).model_dump_json().encode()


class _Error(BaseModel):
    error: str
