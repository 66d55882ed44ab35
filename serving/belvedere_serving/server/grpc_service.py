"""V2 over gRPC. Requests stay bytes until they are in the replica: the generated messages cannot be pickled to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2 as pb

from belvedere_platform.protocol import Reason, V2Error
from belvedere_platform.protocol.grpc_messages import (
    METHODS,
    SERVICE,
    STREAM_METHODS,
    parse_infer_request,
    parse_message,
    render_infer_response,
    render_model_metadata,
    render_server_metadata,
)
from belvedere_serving.server import describe
from belvedere_serving.server.door import DEADLINE_HEADER, timeout_of
from belvedere_serving.server.grpc_door import DooredMethods, GrpcDoor, model_of, refuse
from belvedere_serving.server.grpc_stream import Serialized, answer_stream
from belvedere_serving.server.service import InferenceService
from belvedere_serving.server.timing import SERVER_TIMING
from belvedere_serving.server.tracing import CARRIED

MAX_DETAILS = 1024
HEALTH_SERVICE = "grpc.health.v1.Health"
DOORED = ("ModelInfer",)
REFLECTED = (SERVICE, HEALTH_SERVICE)
"""What reflection names; Ray Serve adds its own."""


def add_to_server(servicer: Any, server: Any) -> None:
    """Register the V2 methods on a gRPC server. Without a deserializer the servicer gets the bytes as they came."""
    for service, methods in ((SERVICE, METHODS), (HEALTH_SERVICE, ("Check",))):
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                getattr(servicer, name), request_deserializer=None, response_serializer=None
            )
            for name in methods
        }
        if service == SERVICE:
            handlers |= {
                name: grpc.stream_stream_rpc_method_handler(
                    getattr(servicer, name), request_deserializer=None, response_serializer=None
                )
                for name in STREAM_METHODS
            }
        server.add_generic_rpc_handlers((DooredMethods(service, handlers, DOORED),))


class GrpcAnswers:
    """The V2 methods of a service: request bytes and the call's context in, answer out.

    An error is set on the context and an empty answer returned. Raised, it would fill the log with
    tracebacks of what clients do wrong.
    """

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._door = GrpcDoor(service)

    async def answer(self, method: str, raw: bytes, context: Any) -> Serialized:
        """Answer a method by its name."""
        result = getattr(self, ANSWER_OF[method])(raw, context)
        found: Serialized = await result if asyncio.iscoroutine(result) else result
        return found

    def health(self, raw: bytes, context: Any) -> Serialized:
        """Answer Check of gRPC's health protocol, for the server (no name) or the V2 service."""

        def answer() -> Any:
            request = parse_message(health_pb2.HealthCheckRequest, raw)
            if request.service not in ("", *REFLECTED):
                raise V2Error(Reason.NOT_FOUND, f"there is no service '{request.service[:64]}'; there is {SERVICE}")
            serving = health_pb2.HealthCheckResponse.SERVING
            return health_pb2.HealthCheckResponse(
                status=serving if self._service.ready else health_pb2.HealthCheckResponse.NOT_SERVING
            )

        return _answered(answer, context)

    async def infer(self, raw: bytes, context: Any) -> Serialized:
        """Answer ModelInfer."""
        model, left = model_of(raw), _time_left(context)
        if (seconds := self._door.retry_after(model, left)) is not None:
            refuse(context, seconds)
            return Serialized(b"")
        try:
            with self._door.entered(model):
                content, timing = await self._service.infer(
                    lambda: parse_infer_request(raw),
                    lambda request, response: render_infer_response(response).SerializeToString(),
                    "grpc",
                    timeout_seconds=left,
                    carrier=_carrier(context),
                )
        except V2Error as error:
            return _refused(error, context)
        # A list: Ray adds metadata of its own to it.
        context.set_trailing_metadata([(SERVER_TIMING, timing.header())])
        return Serialized(content)

    def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncGenerator[Serialized]:
        """Answer ModelStreamInfer."""
        return answer_stream(self._service, requests, timeout_seconds=_time_left(context), carrier=_carrier(context))

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
            # What does not exist is not ready: over gRPC Triton answers so, and its clients ask to wait for a model.
            ready = self._service.ready and self._service.has(request.name, request.version)
            return pb.ModelReadyResponse(ready=ready)

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

    def model_config(self, raw: bytes, context: Any) -> Serialized:
        """Answer ModelConfig."""

        def answer() -> Any:
            request = parse_message(pb.ModelConfigRequest, raw)
            return describe.config_message(self._service.model_config(request.name, request.version))

        return _answered(answer, context)

    def model_statistics(self, raw: bytes, context: Any) -> Serialized:
        """Answer ModelStatistics."""

        def answer() -> Any:
            request = parse_message(pb.ModelStatisticsRequest, raw)
            found = self._service.model_statistics(request.name, request.version)
            return describe.message(pb.ModelStatisticsResponse, found)

        return _answered(answer, context)

    def repository_index(self, raw: bytes, context: Any) -> Serialized:
        """Answer RepositoryIndex."""

        def answer() -> Any:
            parse_message(pb.RepositoryIndexRequest, raw)
            return describe.message(pb.RepositoryIndexResponse, {"models": self._service.repository_index()})

        return _answered(answer, context)

    def shared_memory_status(self, raw: bytes, context: Any) -> Serialized:
        """Answer SystemSharedMemoryStatus and CudaSharedMemoryStatus: there are no regions."""
        return Serialized(b"")

    def shared_memory_refused(self, raw: bytes, context: Any) -> Serialized:
        """Answer whoever wants to register shared memory."""
        return _refused(describe.no_shared_memory(), context)


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


ANSWER_OF = {
    "ModelInfer": "infer",
    "ServerLive": "live",
    "ServerReady": "ready",
    "ModelReady": "model_ready",
    "ServerMetadata": "server_metadata",
    "ModelMetadata": "model_metadata",
    "ModelConfig": "model_config",
    "ModelStatistics": "model_statistics",
    "RepositoryIndex": "repository_index",
    "SystemSharedMemoryStatus": "shared_memory_status",
    "SystemSharedMemoryRegister": "shared_memory_refused",
    "SystemSharedMemoryUnregister": "shared_memory_refused",
    "CudaSharedMemoryStatus": "shared_memory_status",
    "CudaSharedMemoryRegister": "shared_memory_refused",
    "CudaSharedMemoryUnregister": "shared_memory_refused",
    "Check": "health",
}
"""By method of gRPC, the method of GrpcAnswers. `Check` is that of gRPC's own health protocol."""


def _carrier(context: Any) -> dict[str, str]:
    """Return what the client says of the trace that the call belongs to."""
    return {name: str(value) for name, value in context.invocation_metadata() or () if name in CARRIED}


STATUS = {reason: grpc.StatusCode[reason.name] for reason in Reason}
