"""What a sampled exchange says, and how far two answers to one request are apart. No input or output."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as pb

from belvedere_platform.protocol import EMBEDDING, InferResponse, V2Error, grpc_messages, http_messages

INFER_METHOD = f"/{grpc_messages.SERVICE}/ModelInfer"
_INFER_PATH = re.compile(r".*(/v2/models/[^/?]+)(?:/versions/[^/?]+)?/infer(?:\?.*)?")
_FORWARDED = ("content-type", "content-encoding", http_messages.HEADER_LENGTH)
_FRAME = struct.Struct(">BI")


class Unreadable(Exception):
    """An exchange is not one that can be replayed or compared; says why."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One sampled request and the stable version's answer, as they went over the wire."""

    namespace: str
    service: str
    protocol: str
    path: str
    request_headers: Mapping[str, str]
    request_body: bytes
    status: int
    response_headers: Mapping[str, str]
    response_body: bytes

    @property
    def num_bytes(self) -> int:
        """What it costs to keep."""
        return len(self.request_body) + len(self.response_body)

    @property
    def is_inference(self) -> bool:
        """Whether it asks a model something; health and metadata requests have nothing to compare."""
        if self.protocol == "grpc":
            return self.path == INFER_METHOD
        return _INFER_PATH.fullmatch(self.path) is not None

    @property
    def succeeded(self) -> bool:
        """Whether the stable version answered. Status is HTTP's, and a gRPC failure is written as 500."""
        return self.status == 200


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The request as it goes to a replica of the candidate."""

    path: str
    headers: Mapping[str, str]
    body: bytes


def replay_of(exchange: Exchange) -> Replay:
    """Return the request for another version: the same question, without the version the client may have pinned."""
    if exchange.protocol == "grpc":
        message = _read_message(pb.ModelInferRequest, exchange.request_headers, exchange.request_body)
        message.ClearField("model_version")
        return Replay(path=INFER_METHOD, headers={}, body=message.SerializeToString())
    found = _INFER_PATH.fullmatch(exchange.path)
    if found is None:
        raise Unreadable(f"{exchange.path} is no inference path")
    headers = {name: exchange.request_headers[name] for name in _FORWARDED if name in exchange.request_headers}
    return Replay(path=f"{found[1]}/infer", headers=headers, body=exchange.request_body)


def stable_answer(exchange: Exchange) -> InferResponse:
    """Return the stable version's answer."""
    if exchange.protocol == "grpc":
        message = _read_message(pb.ModelInferResponse, exchange.response_headers, exchange.response_body)
        return grpc_answer(message.SerializeToString())
    return http_answer(exchange.response_headers, exchange.response_body)


def http_answer(headers: Mapping[str, str], body: bytes) -> InferResponse:
    """Return the answer in an HTTP response."""
    plain = _decompress(body, headers.get("content-encoding", "identity"))
    try:
        return http_messages.parse_infer_response(plain, headers.get(http_messages.HEADER_LENGTH))
    except V2Error as error:
        raise Unreadable(str(error)) from error


def grpc_answer(raw: bytes) -> InferResponse:
    """Return the answer in a serialized ModelInferResponse."""
    try:
        return grpc_messages.parse_infer_response(raw)
    except V2Error as error:
        raise Unreadable(str(error)) from error


def cosines(stable: InferResponse, candidate: InferResponse) -> list[float]:
    """Return the cosine of each pair of embeddings; -1 for all when the shapes differ or a value is not finite."""
    ours, theirs = _embedding(stable), _embedding(candidate)
    if ours.shape != theirs.shape:
        return [-1.0] * len(ours)
    norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    products = np.sum(ours * theirs, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = products / norms
    return [float(np.clip(value, -1, 1)) if np.isfinite(value) else -1.0 for value in found]


def _embedding(answer: InferResponse) -> np.ndarray[Any, np.dtype[np.float64]]:
    for output in answer.outputs:
        if output.name == EMBEDDING and output.datatype in ("FP32", "FP64", "FP16") and len(output.shape) == 2:
            return output.array.astype(np.float64)
    raise Unreadable(f"the answer of {answer.model_name} has no two-dimensional {EMBEDDING}")


def _read_message(kind: Any, headers: Mapping[str, str], body: bytes) -> Any:
    if len(body) < _FRAME.size:
        raise Unreadable(f"a gRPC body of {len(body)} bytes has no message")
    compressed, length = _FRAME.unpack_from(body)
    if len(body) != _FRAME.size + length:
        raise Unreadable(f"a gRPC body of {len(body)} bytes holds something else than one message of {length}")
    encoding = headers.get("grpc-encoding", "identity") if compressed else "identity"
    try:
        return kind.FromString(_decompress(body[_FRAME.size :], encoding))
    except DecodeError as error:
        raise Unreadable(f"not a {kind.DESCRIPTOR.full_name}") from error


def _decompress(body: bytes, encoding: str) -> bytes:
    if encoding in ("identity", ""):
        return body
    if encoding not in ("gzip", "deflate"):
        raise Unreadable(f"content encoding {encoding} is not read; gzip and deflate are")
    reader = zlib.decompressobj(wbits=47 if encoding == "gzip" else 15)
    try:
        plain = reader.decompress(body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise Unreadable(f"the body is not {encoding}: {error}") from error
    if reader.unconsumed_tail:
        raise Unreadable(f"the body has more than {MAX_BODY_BYTES} bytes")
    return plain


MAX_BODY_BYTES = 32 << 20
"""A larger request or answer is not compared."""


class Recording:
    """Collects the pieces of one exchange as the tap hears them."""

    def __init__(self, *, namespace: str, service: str, protocol: str) -> None:
        self._exchange = Exchange(
            namespace=namespace, service=service, protocol=protocol, path="", request_headers={}, request_body=b"",
            status=0, response_headers={}, response_body=b"",
        )  # fmt: skip
        self._request: list[bytes] = []
        self._response: list[bytes] = []
        self._num_bytes = 0

    @property
    def namespace(self) -> str:
        """Of the service that was asked."""
        return self._exchange.namespace

    @property
    def service(self) -> str:
        """The service that was asked."""
        return self._exchange.service

    @property
    def num_bytes(self) -> int:
        """What is kept of it by now."""
        return self._num_bytes

    def take(self, message: Any) -> Exchange | None:
        """Take a piece; returns the exchange when it was the last. Raises Unreadable when there is too much of it."""
        kind = message.WhichOneof("request")
        piece = getattr(message, kind)
        if kind == "request_headers":
            headers = _headers(piece.headers)
            self._exchange = replace(self._exchange, path=headers.get(":path", ""), request_headers=headers)
        elif kind == "request_body":
            self._keep(self._request, piece.body)
        elif kind == "response_headers":
            self._note_status(_headers(piece.headers), trailers=False)
        elif kind == "response_body":
            self._keep(self._response, piece.body)
        elif kind == "response_trailers":
            self._note_status(_headers(piece.trailers), trailers=True)
            return self._finish()
        ended = kind in ("response_headers", "response_body") and piece.end_of_stream
        return self._finish() if ended else None

    def _keep(self, pieces: list[bytes], body: bytes) -> None:
        self._num_bytes += len(body)
        if self._num_bytes > MAX_BODY_BYTES:
            raise Unreadable(f"request and answer together have more than {MAX_BODY_BYTES} bytes")
        pieces.append(body)

    def _note_status(self, headers: Mapping[str, str], *, trailers: bool) -> None:
        if not trailers:
            status = int(headers.get(":status", "0"))
            self._exchange = replace(self._exchange, status=status, response_headers=headers)
        if headers.get("grpc-status", "0") != "0":
            self._exchange = replace(self._exchange, status=500)

    def _finish(self) -> Exchange:
        return replace(self._exchange, request_body=b"".join(self._request), response_body=b"".join(self._response))


def _headers(headers: Any) -> dict[str, str]:
    return {header.key: header.value or header.raw_value.decode("latin-1") for header in headers.headers}
