"""The model server as a Ray Serve application. Arguments: see `ServerConfig`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from ray import serve
from ray.serve._private.constants import DEFAULT_GRPC_SERVER_OPTIONS

from belvedere_serving.server import engine_cache, service
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.grpc_door import WAITING
from belvedere_serving.server.grpc_service import ANSWER_OF, GrpcAnswers
from belvedere_serving.server.grpc_stream import Serialized
from belvedere_serving.server.http_app import V2HttpApp
from belvedere_serving.server.metrics import AtIntervals, RayMetrics

INGRESS = "V2Server"
NUM_QUEUES = 6
"""V2 models that an engine has at most."""


class _V2Server:
    """One replica: one engine, HTTP and gRPC."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        config = ServerConfig.parse(arguments)
        service.take_short_turns()
        folder = engine_cache.fetch(config.artifacts, config.engine_digest, engine_cache.cache_folder())
        engine = engine_cache.load(folder, threads=config.threads, models=config.models)
        service.warm_up(engine, config.max_batch_size)
        labels = {"namespace": config.namespace, "service": config.service, "version": config.version}
        self._service = service.assemble(engine, config, AtIntervals(RayMetrics(labels)))
        self._grpc = GrpcAnswers(self._service)
        bound_waiting_calls()
        service.collect_seldom()

    def __serve_build_asgi_app__(self) -> V2HttpApp:
        return V2HttpApp(self._service)

    async def ModelStreamInfer(self, requests: Any, grpc_context: Any) -> AsyncGenerator[Serialized]:
        """Answer a stream of requests."""
        async with contextlib.aclosing(self._grpc.stream(requests, grpc_context)) as answers:
            async for answer in answers:
                yield answer

    def check_health(self) -> None:
        """Tell Serve to replace this replica when its engine hangs."""
        self._service.check_health()


def bound_waiting_calls() -> None:
    """Let no more calls wait in gRPC's own queue than can be answered in time.

    Ray makes the servers of a replica after this, with options that nobody can add to but here.
    """
    DEFAULT_GRPC_SERVER_OPTIONS.extend(one for one in WAITING if one not in DEFAULT_GRPC_SERVER_OPTIONS)


def _method(name: str) -> Callable[[_V2Server, bytes, Any], Awaitable[Serialized]]:
    async def method(self: _V2Server, request: bytes, grpc_context: Any) -> Serialized:
        return await self._grpc.answer(name, request, grpc_context)

    return method


# Serve calls the method that is named as the one of gRPC, by its last part alone.
for _name in ANSWER_OF:
    setattr(_V2Server, _name, _method(_name))


def build(args: Mapping[str, Any]) -> serve.Application:
    """Return the application of one version of one service. Raises InvalidInput for wrong arguments."""
    config = ServerConfig.parse(args)
    # Serve must let more in than our own queues hold, one a model: ours refuse with a V2 error, Serve's with one of its own.
    ongoing = NUM_QUEUES * (config.max_rows_waiting + config.max_batch_size) + 16
    deployment = serve.deployment(
        name=INGRESS,
        max_ongoing_requests=ongoing,
        # Requests that come in one turn of the event loop are all queued for a moment.
        max_queued_requests=ongoing,
        health_check_period_s=5,
        # Every request is in our metrics; a line in a file for each would cost more than a small model's run, and one that
        # is made and then not written, as Ray does without the level, still a fortieth of what the event loop does for it.
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(serve.ingress()(_V2Server))
    application: serve.Application = deployment.bind(config.model_dump(by_alias=True))
    return application
