"""The model server in this process, without Ray: for tests, and to look at an engine."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
import uvicorn
from grpc_reflection.v1alpha import reflection

from belvedere_platform.errors import Unavailable
from belvedere_serving.server import engine_cache
from belvedere_serving.server.config import ServerConfig
from belvedere_serving.server.door import Door
from belvedere_serving.server.door_protocol import DoorProtocol
from belvedere_serving.server.grpc_door import WAITING
from belvedere_serving.server.grpc_service import ANSWER_OF, REFLECTED, GrpcAnswers, add_to_server
from belvedere_serving.server.http_app import V2HttpApp
from belvedere_serving.server.metrics import NoMetrics
from belvedere_serving.server.service import InferenceService, assemble, collect_seldom, take_short_turns, warm_up


class _Servicer:
    """The V2 methods as grpc.aio wants them: coroutines that return bytes."""

    def __init__(self, answers: GrpcAnswers) -> None:
        for name in ANSWER_OF:
            setattr(self, name, self._method(answers, name))
        self._answers = answers

    async def ModelStreamInfer(self, requests: AsyncIterator[bytes], context: Any) -> AsyncGenerator[bytes]:
        """Answer a stream of requests."""
        async with contextlib.aclosing(self._answers.stream(requests, context)) as answers:
            async for answer in answers:
                yield answer.content

    @staticmethod
    def _method(answers: GrpcAnswers, name: str) -> Any:
        async def method(request: bytes, context: Any) -> bytes:
            return (await answers.answer(name, request, context)).content

        return method


@contextlib.asynccontextmanager
async def serving(
    service: InferenceService, *, host: str = "127.0.0.1", http_port: int = 0, grpc_port: int = 0
) -> AsyncIterator[tuple[int, int]]:
    """Serve HTTP and gRPC for the time of a with block; gives the two ports (0 takes a free one)."""
    grpc_server = grpc.aio.server(options=WAITING)
    add_to_server(_Servicer(GrpcAnswers(service)), grpc_server)
    reflection.enable_server_reflection((*REFLECTED, reflection.SERVICE_NAME), grpc_server)
    bound_grpc = _bind_grpc(grpc_server, host, grpc_port)
    listener = _listen(host, http_port)
    http_server = uvicorn.Server(
        uvicorn.Config(
            Door(V2HttpApp(service)),
            http=DoorProtocol,
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
        )
    )
    await grpc_server.start()
    # Not `serve`, which would take over the process's signal handlers.
    task = asyncio.create_task(http_server._serve([listener]))
    try:
        yield listener.getsockname()[1], bound_grpc
    finally:
        http_server.should_exit = True
        await grpc_server.stop(1)
        await task


async def serve_until_stopped(
    config: ServerConfig, *, http_port: int, grpc_port: int, started: Callable[[int, int], None]
) -> None:
    """Serve an engine until SIGINT or SIGTERM; `started` is called with the ports."""
    take_short_turns()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    folder = engine_cache.fetch(config.artifacts, config.engine_digest, engine_cache.cache_folder())
    engine = engine_cache.load(folder, threads=config.threads, models=config.models)
    warm_up(engine, config.max_batch_size)
    service = assemble(engine, config, NoMetrics())
    collect_seldom()
    async with serving(service, http_port=http_port, grpc_port=grpc_port) as ports:
        started(*ports)
        await stopped.wait()


def _listen(host: str, port: int) -> socket.socket:
    # Named TCP, or asyncio leaves Nagle's algorithm on: head and body of an answer then wait 40 ms for each other.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}; choose another --http-port") from error
    return listener


def _bind_grpc(server: Any, host: str, port: int) -> int:
    try:
        bound: int = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {host}:{port}: {error}; choose another --grpc-port") from error
    return bound
