"""A small real model server over HTTP and gRPC that fails as it is told."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from aiohttp import web
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from belvedere_platform.protocol import InferRequest, InferResponse, Tensor, grpc_messages, http_messages
from belvedere_serving.gateway.world import Replica


@dataclass(kw_only=True)
class Faults:
    """What a model server does wrong, and how long it takes."""

    delay_seconds: float = 0
    held: bool = False
    """Answer nothing over HTTP until somebody sets `released`."""
    http_status: int = 200
    grpc_status: grpc.StatusCode = grpc.StatusCode.OK
    reset: bool = False
    breaks_off: bool = False
    """Begin a good answer and hang up before its end."""
    wrong: bool = False


@dataclass(kw_only=True)
class ModelServer:
    """A V2 server of one version over HTTP, under a prefix, and gRPC."""

    version: str
    prefix: str = ""
    address: str = "127.0.0.1"
    faults: Faults = field(default_factory=Faults)
    num_http: int = 0
    num_grpc: int = 0
    num_in_flight: int = 0
    paths: list[str] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    http_port: int = 0
    grpc_port: int = 0
    grpc_server: Any = None
    hanging_up: asyncio.Task[None] | None = None
    released: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def replica(self) -> Replica:
        return Replica(
            address=self.address,
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            http_path_prefix=self.prefix,
        )

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get(self.prefix + "/v2/health/ready", self._ready)
        app.router.add_post(self.prefix + "/v2/models/{model}/infer", self._infer_http)
        app.router.add_post(self.prefix + "/v2/models/{model}/versions/{version}/infer", self._infer_http)
        runner = web.AppRunner(app, shutdown_timeout=5)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, self.address, 0)
        await site.start()
        self.http_port = runner.addresses[0][1]
        self.grpc_server = server = grpc.aio.server()
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(self), server)
        self.grpc_port = server.add_insecure_port(f"{self.address}:0")
        await server.start()
        self.stack.push_async_callback(self._stop_grpc)

    async def _stop_grpc(self) -> None:
        await (self.hanging_up or self.grpc_server.stop(5))

    def hang_up_grpc(self) -> None:
        """End every call in the middle. Whoever awaits this within a call is ended with it, so a task of its own does it."""
        self.hanging_up = asyncio.create_task(self.grpc_server.stop(0))

    async def _break_off(self, request: web.Request, body: bytes) -> None:
        answer = web.StreamResponse(headers={"content-length": str(len(body)), "content-type": "application/json"})
        await answer.prepare(request)
        await answer.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.close()
        raise asyncio.CancelledError

    def answer(self, request: InferRequest) -> InferResponse:
        texts = [element for element in request.inputs[0].array.reshape(-1).tolist()]
        rows = np.stack([embed(bytes(text), wrong=self.faults.wrong) for text in texts])
        return InferResponse(
            model_name=request.model_name,
            model_version=self.version,
            id=request.id,
            outputs=(Tensor("EMBEDDING", "FP32", rows),),
        )

    async def _ready(self, request: web.Request) -> web.Response:
        return web.json_response({})

    async def _infer_http(self, request: web.Request) -> web.Response:
        self.num_http += 1
        self.num_in_flight += 1
        self.paths.append(request.raw_path)
        try:
            body = await request.read()
            held = self.faults.held
            await asyncio.sleep(self.faults.delay_seconds)
            if held:
                await self.released.wait()
        finally:
            self.num_in_flight -= 1
        if self.faults.reset:
            assert request.transport is not None
            request.transport.abort()
            raise asyncio.CancelledError
        if self.faults.http_status != 200:
            return web.json_response({"error": "told to fail"}, status=self.faults.http_status)
        header = http_messages.HEADER_LENGTH
        parsed = http_messages.parse_infer_request(request.match_info["model"], "", body, request.headers.get(header))
        rendered, length = http_messages.render_infer_response(parsed, self.answer(parsed))
        if self.faults.breaks_off:
            await self._break_off(request, rendered)
        headers = {} if length is None else {header: str(length)}
        return web.Response(body=rendered, headers=headers, content_type="application/json")


class _Servicer(pb_grpc.GRPCInferenceServiceServicer):
    def __init__(self, server: ModelServer) -> None:
        self._server = server

    async def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        server = self._server
        server.num_grpc += 1
        server.num_in_flight += 1
        try:
            await asyncio.sleep(server.faults.delay_seconds)
        finally:
            server.num_in_flight -= 1
        if server.faults.breaks_off:
            await context.send_initial_metadata(())
            server.hang_up_grpc()
            await asyncio.Event().wait()
        if server.faults.grpc_status is not grpc.StatusCode.OK:
            await context.abort(server.faults.grpc_status, "told to fail")
        parsed = grpc_messages.parse_infer_request(request.SerializeToString())
        return grpc_messages.render_infer_response(server.answer(parsed))


def embed(text: bytes, *, wrong: bool = False) -> np.ndarray[Any, Any]:
    """A unit vector that depends on the text alone; a wrong one points elsewhere."""
    generator = np.random.default_rng([*text, 1 if wrong else 0])
    vector = generator.normal(size=16).astype(np.float32)
    return vector / np.linalg.norm(vector)
