"""V2 over gRPC. Requests stay bytes until they are in the replica: the generated messages cannot be pickled to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb

from belvedere_platform.protocol import Reason, V2Error
from belvedere_platform.protocol.grpc_messages import (
    METHODS,
    SERVICE,
    parse_infer_request,
    parse_message,
    render_infer_response,
    render_model_metadata,
    render_server_metadata,
)
from belvedere_serving.server.http_app import DEADLINE_HEADER, timeout_of
from belvedere_serving.server.service import InferenceService

MAX_DETAILS = 1024


@dataclass(frozen=True)
class Serialized:
    """An answer as bytes. Ray Serve calls SerializeToString on what a method returns."""

    content: bytes

    def SerializeToString(self) -> bytes:
        """Return the bytes."""
        return self.content


def add_to_server(servicer: Any, server: Any) -> None:
    """Register the V2 methods on a gRPC server. Without a deserializer the servicer gets the bytes as they came."""
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name), request_deserializer=None, response_serializer=None
        )
        for name in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


class GrpcAnswers:
    """The V2 methods of a service: request bytes and the call's context in, answer out.

    An error is set on the context and an empty answer returned. Raised, it would fill the log with
    tracebacks of what clients do wrong.
    """

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    async def infer(self, raw: bytes, context: Any) -> Serialized:
        """Answer ModelInfer."""
        try:
            _, response = await self._service.infer(
                lambda: parse_infer_request(raw), "grpc", timeout_seconds=_time_left(context)
            )
        except V2Error as error:
            return _refused(error, context)
        return Serialized(render_infer_response(response).SerializeToString())

    def live(self, raw: bytes, context: Any) -> Serialized:
        """Answer ServerLive."""
        return Serialized(pb.ServerLiveResponse(live=True).SerializeToString())

    def ready(self, raw: bytes, context: Any) -> Serialized:
        """Answer ServerReady."""
        return Serialized(pb.ServerReadyResponse(ready=self._service.ready).SerializeToString())

    def model_ready(self, raw: bytes, context: Any) -> Serialized:
        """Answer ModelReady."""

        def answer() -> Any:
            request = parse_message(pb.ModelReadyRequest, raw)
            self._service.model(request.name, request.version)
            return pb.ModelReadyResponse(ready=self._service.ready)

        return _answered(answer, context)

    def server_metadata(self, raw: bytes, context: Any) -> Serialized:
        """Answer ServerMetadata."""
        return _answered(lambda: render_server_metadata(self._service.server_metadata()), context)

    def model_metadata(self, raw: bytes, context: Any) -> Serialized:
        """Answer ModelMetadata."""

        def answer() -> Any:
            request = parse_message(pb.ModelMetadataRequest, raw)
            return render_model_metadata(self._service.model_metadata(request.name, request.version))

        return _answered(answer, context)


def _answered(answer: Callable[[], Any], context: Any) -> Serialized:
    try:
        return Serialized(answer().SerializeToString())
    except V2Error as error:
        return _refused(error, context)


def _refused(error: V2Error, context: Any) -> Serialized:
    context.set_code(STATUS[error.reason])
    context.set_details(error.message[:MAX_DETAILS])
    return Serialized(b"")


def _time_left(context: Any) -> float | None:
    """Return the seconds until the client or the gateway gives up, if known. Ray's context does not tell the client's."""
    told = dict(context.invocation_metadata() or ()).get(DEADLINE_HEADER.decode())
    limits = [timeout_of(told.encode() if isinstance(told, str) else None)]
    if hasattr(context, "time_remaining"):
        limits.append(context.time_remaining())
    return min((limit for limit in limits if limit is not None), default=None)


STATUS = {reason: grpc.StatusCode[reason.name] for reason in Reason}
