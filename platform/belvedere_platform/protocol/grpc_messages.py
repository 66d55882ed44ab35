"""V2 over gRPC: the same requests and answers as protobuf messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from belvedere_platform.protocol import tensors
from belvedere_platform.protocol.errors import invalid
from belvedere_platform.protocol.messages import (
    InferRequest,
    InferResponse,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
)
from belvedere_platform.protocol.tensors import BYTES, Tensor

SERVICE = "inference.GRPCInferenceService"
METHODS = (
    *("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer"),
    *("ModelConfig", "ModelStatistics", "RepositoryIndex"),
    *("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    *("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
)
"""What the model servers answer: V2, and of Triton's extensions configuration, statistics, index, and a refusal of shared memory."""
STREAM_METHODS = ("ModelStreamInfer",)
"""A stream of requests in, a stream of answers out."""
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}

_PARAMETER = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


def parse_message(kind: Any, raw: bytes) -> Any:
    """Return the protobuf message of this kind that the bytes hold."""
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        raise invalid(f"the request is not a {kind.DESCRIPTOR.full_name}: {error}") from error


def parse_infer_request(raw: bytes) -> InferRequest:
    """Return the request in a serialized ModelInferRequest."""
    return read_infer_request(parse_message(pb.ModelInferRequest, raw))


def read_infer_request(message: Any) -> InferRequest:
    """Return the request in a ModelInferRequest."""
    return InferRequest(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        inputs=_parse_tensors(message.inputs, message.raw_input_contents),
        outputs=tuple(RequestedOutput(name=output.name, binary=True) for output in message.outputs),
        parameters=_parameters(message.parameters),
    )


def render_infer_request(request: InferRequest) -> Any:
    """Return the ModelInferRequest of a request."""
    message = pb.ModelInferRequest(model_name=request.model_name, model_version=request.model_version, id=request.id)
    for tensor in request.inputs:
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_input_contents.append(tensors.to_binary(tensor))
    for output in request.outputs:
        message.outputs.add(name=output.name)
    return message


def render_infer_response(response: InferResponse) -> Any:
    """Return the ModelInferResponse of an answer."""
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id
    )
    for name, value in response.parameters.items():
        setattr(message.parameters[name], _PARAMETER[type(value)], value)
    for tensor in response.outputs:
        message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        message.raw_output_contents.append(tensors.to_binary(tensor))
    return message


def parse_infer_response(raw: bytes) -> InferResponse:
    """Return the answer in a serialized ModelInferResponse."""
    message = parse_message(pb.ModelInferResponse, raw)
    return InferResponse(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        outputs=_parse_tensors(message.outputs, message.raw_output_contents),
    )


def render_server_metadata(metadata: ServerMetadata) -> Any:
    """Return the ServerMetadataResponse."""
    return pb.ServerMetadataResponse(name=metadata.name, version=metadata.version, extensions=list(metadata.extensions))


def render_model_metadata(metadata: ModelMetadata) -> Any:
    """Return the ModelMetadataResponse."""
    message = pb.ModelMetadataResponse(name=metadata.name, versions=list(metadata.versions), platform=metadata.platform)
    for given, field in ((metadata.inputs, message.inputs), (metadata.outputs, message.outputs)):
        for tensor in given:
            field.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return message


def _parse_tensors(infos: Sequence[Any], raw_contents: Sequence[bytes]) -> tuple[Tensor, ...]:
    if not raw_contents:
        return tuple(_parse_contents(info) for info in infos)
    if len(raw_contents) != len(infos):
        raise invalid(f"{len(raw_contents)} raw contents for {len(infos)} tensors; send one for each, or none")
    return tuple(
        tensors.from_binary(info.name, info.datatype, info.shape, raw)
        for info, raw in zip(infos, raw_contents, strict=True)
    )


def _parse_contents(info: Any) -> Tensor:
    datatype = tensors.check_datatype(info.name, info.datatype)
    if datatype not in _CONTENTS:
        raise invalid(f"input '{info.name}': {datatype} can be sent as raw contents only")
    values = list(getattr(info.contents, _CONTENTS[datatype]))
    if datatype != BYTES:
        return tensors.from_json_data(info.name, datatype, info.shape, values)
    return tensors.from_binary(info.name, datatype, info.shape, tensors.encode_elements(values))


def _parameters(parameters: Any) -> dict[str, bool | int | float | str]:
    return {
        name: getattr(value, choice)
        for name, value in parameters.items()
        if (choice := value.WhichOneof("parameter_choice")) is not None
    }
