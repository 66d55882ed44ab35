"""A real Envoy with its control plane, and small real model servers that fail as they are told."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc

from belvedere_platform.protocol import InferRequest, InferResponse, Tensor, grpc_messages, http_messages
from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.bootstrap import EnvoySettings, bootstrap
from belvedere_serving.gateway.envoy import envoy_command
from belvedere_serving.gateway.snapshot import build_snapshot
from belvedere_serving.gateway.world import Replica, World
from belvedere_serving.gateway.xds import Discovery, serve_discovery

NAMESPACE, SERVICE = "default", "emoji"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class Faults:
    """What a model server does wrong, and how long it takes."""

    delay_seconds: float = 0
    http_status: int = 200
    grpc_status: grpc.StatusCode = grpc.StatusCode.OK
    reset: bool = False
    wrong: bool = False


@dataclass(kw_only=True)
class ModelServer:
    """A V2 server of one version over HTTP, under a prefix, and gRPC."""

    version: str
    prefix: str = ""
    faults: Faults = field(default_factory=Faults)
    num_http: int = 0
    num_grpc: int = 0
    num_in_flight: int = 0
    paths: list[str] = field(default_factory=list)
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    http_port: int = 0
    grpc_port: int = 0

    @property
    def replica(self) -> Replica:
        return Replica(
            address="127.0.0.1",
            http_port=self.http_port,
            grpc_port=self.grpc_port,
            http_path_prefix=self.prefix,
        )

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get(self.prefix + "/v2/health/ready", self._ready)
        app.router.add_post(self.prefix + "/v2/models/{model}/infer", self._infer_http)
        runner = web.AppRunner(app, shutdown_timeout=5)
        await runner.setup()
        self.stack.push_async_callback(runner.cleanup)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.http_port = runner.addresses[0][1]
        server = grpc.aio.server()
        pb_grpc.add_GRPCInferenceServiceServicer_to_server(_Servicer(self), server)
        self.grpc_port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.stack.push_async_callback(server.stop, 5)

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
            await asyncio.sleep(self.faults.delay_seconds)
        finally:
            self.num_in_flight -= 1
        if self.faults.reset:
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        if self.faults.http_status != 200:
            return web.json_response({"error": "told to fail"}, status=self.faults.http_status)
        header = http_messages.HEADER_LENGTH
        parsed = http_messages.parse_infer_request(
            request.match_info["model"], "", body, request.headers.get(header)
        )
        rendered, length = http_messages.render_infer_response(parsed, self.answer(parsed))
        headers = {} if length is None else {header: str(length)}
        return web.Response(body=rendered, headers=headers)


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
        if server.faults.grpc_status is not grpc.StatusCode.OK:
            await context.abort(server.faults.grpc_status, "told to fail")
        parsed = grpc_messages.parse_infer_request(request.SerializeToString())
        return grpc_messages.render_infer_response(server.answer(parsed))


def embed(text: bytes, *, wrong: bool = False) -> np.ndarray[Any, Any]:
    """A unit vector that depends on the text alone; a wrong one points elsewhere."""
    generator = np.random.default_rng([*text, 1 if wrong else 0])
    vector = generator.normal(size=16).astype(np.float32)
    return vector / np.linalg.norm(vector)


@dataclass(kw_only=True)
class Gateway:
    """An Envoy and its control plane in the test's own loop."""

    port: int
    admin: httpx.AsyncClient
    settings: EnvoySettings
    registry: CollectorRegistry
    tap_port: int
    discovery: Discovery
    server: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def publish(self, world: World) -> None:
        self.discovery.publish(build_snapshot(world, tap_address="127.0.0.1", tap_port=self.tap_port))

    async def start_control_plane(self) -> None:
        self.server = await serve_discovery(self.discovery, f"127.0.0.1:{self.settings.xds_port}")

    async def stop_control_plane(self) -> None:
        await self.server.stop(0)

    async def stats(self) -> str:
        return (await self.admin.get("/stats/prometheus")).text

    async def until(self, text: str, path: str = "/config_dump") -> None:
        """Wait until Envoy's admin page says something."""
        await eventually(lambda: self._says(path, text), f"{path} to say {text!r}")

    async def _says(self, path: str, text: str) -> bool:
        try:
            return text in (await self.admin.get(path)).text
        except httpx.HTTPError:
            return False


async def eventually(check: Callable[[], Any], what: str, timeout_seconds: float = 20) -> None:
    """Ask until the answer is true. Only for states of another process, which cannot be awaited."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while not await check():
        assert asyncio.get_running_loop().time() < deadline, f"waited {timeout_seconds} s for {what}"
        await asyncio.sleep(0.02)


def world(route: GatewayRoute, *servers: ModelServer) -> World:
    replicas: dict[tuple[str, str, str], list[Replica]] = {}
    for server in servers:
        replicas.setdefault((route.namespace, route.service, server.version), []).append(server.replica)
    return World(
        routes={(route.namespace, route.service): route},
        replicas={key: tuple(sorted(found)) for key, found in replicas.items()},
    )


def route(weights: dict[str, int], **fields: Any) -> GatewayRoute:
    document = {
        "namespace": NAMESPACE,
        "service": SERVICE,
        "routing": {"default": True, **fields.pop("routing", {})},
        "versions": [{"version": version, "weight": weight} for version, weight in weights.items()],
        **fields,
    }
    return GatewayRoute.model_validate(document)


@pytest.fixture
async def servers() -> AsyncIterator[Callable[..., Any]]:
    """Start model servers; they end with the test."""
    async with AsyncExitStack() as stack:

        async def start(version: str, prefix: str = "", **faults: Any) -> ModelServer:
            server = ModelServer(version=version, prefix=prefix, faults=Faults(**faults))
            await server.start()
            stack.push_async_callback(server.stack.aclose)
            return server

        yield start


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """Start an Envoy with a control plane that knows nothing yet."""
    settings = EnvoySettings(
        node_id="test", gateway_port=free_port(), admin_port=free_port(), xds_port=free_port()
    )
    file = tmp_path / "envoy.json"
    file.write_text(bootstrap(settings))
    registry = CollectorRegistry()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.admin_port}") as admin:
        gateway = Gateway(
            port=settings.gateway_port,
            admin=admin,
            settings=settings,
            registry=registry,
            tap_port=free_port(),
            discovery=Discovery(registry),
        )
        await gateway.start_control_plane()
        with (tmp_path / "envoy.log").open("wb") as log:
            process = subprocess.Popen(envoy_command(file), stderr=log)
        try:
            yield gateway
        finally:
            process.terminate()
            process.wait(10)
            await gateway.stop_control_plane()
            print((tmp_path / "envoy.log").read_text()[-6000:])
