"""The outermost part of a gRPC server: what cannot be answered in time is refused before it is parsed, in a crowd before it is read.

gRPC names the model in the message alone, so a call is read before it is known what it asks. Where the turns of the event loop have
become long, it is refused without that, by what registers the methods: on Ray Serve too, which puts its own behind them. Before all that a
call waits in a queue of gRPC's own, since the event loop takes up one a turn; where too many wait there, gRPC itself ends them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

from belvedere_platform.protocol import Reason
from belvedere_serving.server.admission import Turns
from belvedere_serving.server.door import TOO_BUSY, Host

PUSHBACK = "grpc-retry-pushback-ms"
"""gRPC's own word for when to come again, in the trailing metadata of a refusal."""
WAITING = (("grpc.server.max_pending_requests", 128), ("grpc.server.max_pending_requests_hard_limit", 192))
"""Options of a gRPC server: from how many calls in its own queue it ends some of those that come, and from how many all (CANCELLED).

By default 1,000 and 3,000, which wait for longer than their deadlines. Fewer than these a client may well send at once to an idle server.
"""
Behaviour = Callable[[Any, Any], Awaitable[Any]]


class DooredMethods(grpc.ServiceRpcHandler):  # type: ignore[misc]
    """The methods of a service, of which some are refused at once while the event loop's turns are long."""

    def __init__(
        self, service: str, methods: Mapping[str, Any], doored: tuple[str, ...], turns: Turns | None = None
    ) -> None:
        self._service = service
        # Ray looks for them by this name, and puts its own behind each.
        self._method_handlers = {f"/{service}/{name}": handler for name, handler in methods.items()}
        self._doored = frozenset(f"/{service}/{name}" for name in doored)
        self._turns = turns or Turns()
        self._num_inside = 0
        self._counting: dict[str, tuple[Any, Any]] = {}

    def service_name(self) -> str:
        """Return the name of the service."""
        return self._service

    def service(self, handler_call_details: Any) -> Any:
        """Return what answers a call: its method, what refuses it unread, or None where there is no such method."""
        method = handler_call_details.method
        handler = self._method_handlers.get(method)
        if handler is None or method not in self._doored:
            return handler
        self._turns.look()
        return _REFUSING if self._turns.too_long(self._num_inside) else self._counted(method, handler)

    def _counted(self, method: str, handler: Any) -> Any:
        """Return the method, with those counted that are in it."""
        known, counting = self._counting.get(method, (None, None))
        if known is not handler:
            counting = handler._replace(unary_unary=self._count(handler.unary_unary))
            self._counting[method] = handler, counting
        return counting

    def _count(self, behaviour: Behaviour) -> Behaviour:
        async def counted(request: Any, context: Any) -> Any:
            self._num_inside += 1
            try:
                return await behaviour(request, context)
            finally:
                self._num_inside -= 1

        return counted


class GrpcDoor:
    """Who is let in of those whose call has been read, by the model that it names."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._inside: dict[str, int] = {}

    def retry_after(self, model: str, timeout_seconds: float | None) -> int | None:
        """Return after how many seconds to come again, and count it, where the call could not be answered in time."""
        seconds = self._host.retry_after(model, timeout_seconds, self._inside.get(model, 0))
        if seconds is not None:
            self._host.count_refused(model, "grpc")
        return seconds

    @contextmanager
    def entered(self, model: str) -> Iterator[None]:
        """Count a call as one that is inside."""
        self._inside[model] = self._inside.get(model, 0) + 1
        try:
            yield
        finally:
            self._inside[model] -= 1
            if not self._inside[model]:
                del self._inside[model]


def model_of(raw: bytes) -> str:
    """Return the model that a serialized ModelInferRequest begins with, as every client writes it; empty where it does not."""
    if len(raw) < 2 or raw[0] != _MODEL_NAME or raw[1] > _SHORT:
        return ""
    return raw[2 : 2 + raw[1]].decode("utf-8", "replace")


def refuse(context: Any, retry_after_seconds: int) -> None:
    """Tell a client that it is refused, and when to come again."""
    context.set_code(grpc.StatusCode[Reason.RESOURCE_EXHAUSTED.name])
    context.set_details(TOO_BUSY)
    context.set_trailing_metadata([(PUSHBACK, f"{1000 * retry_after_seconds}")])


async def _refused(requests: Any, context: Any) -> bytes:
    refuse(context, 1)
    return b""


_REFUSING = grpc.stream_unary_rpc_method_handler(_refused)
"""As a stream of requests, of which none is read: a single one would be read first."""
_MODEL_NAME, _SHORT = 0x0A, 0x7F
"""Field 1, of a length; and the longest that takes one byte to say."""
