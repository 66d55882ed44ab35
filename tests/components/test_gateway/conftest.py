"""A real Envoy with its control plane, and small real model servers that fail as they are told."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from aiohttp import web
from prometheus_client import CollectorRegistry
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as pb_grpc
from tritonclient.utils import InferenceServerException

from belvedere_platform.protocol import InferRequest, InferResponse, Tensor, grpc_messages, http_messages
from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.bootstrap import EnvoySettings, bootstrap
from belvedere_serving.gateway.envoy import envoy_command
from belvedere_serving.gateway.snapshot import build_snapshot
from belvedere_serving.gateway.world import Replica, World
from belvedere_serving.gateway.xds import Discovery, serve_discovery

NAMESPACE, SERVICE = "default", "emoji"


def pick_port() -> int:
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
        self.stack.push_async_callback(server.stop, 5)

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
            await asyncio.sleep(self.faults.delay_seconds)
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
            await server.grpc_server.stop(0)
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
    discovery_port: int
    server: Any = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def publish(self, world: World) -> None:
        self.discovery.publish(build_snapshot(world, tap_address="127.0.0.1", tap_port=self.tap_port))

    async def start_control_plane(self) -> None:
        self.server = await serve_discovery(self.discovery, f"127.0.0.1:{self.discovery_port}")

    async def stop_control_plane(self) -> None:
        await self.server.stop(0)

    async def replace_control_plane(self) -> None:
        """Stop it, and start another at its place that knows nothing of what this one said."""
        await self.stop_control_plane()
        self.discovery = Discovery(CollectorRegistry())
        await self.start_control_plane()

    async def until_connected(self) -> None:
        await eventually(self._connected, "Envoy to find its control plane")

    async def _connected(self) -> bool:
        return await self.value("envoy_control_plane_connected_state") == 1

    async def stats(self) -> str:
        return (await self.admin.get("/stats/prometheus")).text

    async def put(self, route: GatewayRoute, *servers: ModelServer) -> None:
        """Publish one service and wait until Envoy listens."""
        self.publish(world_of(route, *servers))
        await eventually(self._listens, "Envoy to listen")

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def until_weights(self, **weights: int) -> None:
        """Wait until Envoy's routes give these versions these weights, and no other any."""
        await eventually(lambda: self._weighs(weights), f"the weights {weights}")

    async def _weighs(self, weights: dict[str, int]) -> bool:
        dump = (await self.admin.get("/config_dump?resource=dynamic_route_configs")).json()
        shares = [
            (cluster["name"].split("/")[2], cluster["weight"])
            for table in dump.get("configs", [])
            for route in table["route_config"]["virtual_hosts"][0]["routes"]
            for cluster in route.get("route", {}).get("weighted_clusters", {}).get("clusters", [])
        ]
        return bool(shares) and set(shares) == set(weights.items())

    async def value(self, name: str, **labels: str) -> float:
        """The sum of Envoy's samples of a metric that have these labels."""
        samples = re.findall(rf"^{name}{{(.*)}} (\S+)$", await self.stats(), flags=re.MULTILINE)
        wanted = {f'{key}="{value}"' for key, value in labels.items()}
        return sum(float(value) for found, value in samples if wanted <= set(found.split(",")))

    async def until(self, text: str, path: str = "/config_dump") -> None:
        """Wait until Envoy's admin page says something."""
        await eventually(lambda: self._says(path, text), f"{path} to say {text!r}")

    async def _says(self, path: str, text: str) -> bool:
        try:
            return text in (await self.admin.get(path)).text
        except httpx.HTTPError:
            return False


async def eventually(check: Callable[[], Any], what: str, timeout_seconds: float = 60) -> None:
    """Ask until the answer is true. Only for states of another process, which cannot be awaited."""
    deadline = asyncio.get_running_loop().time() + timeout_seconds
    while not await check():
        assert asyncio.get_running_loop().time() < deadline, f"waited {timeout_seconds} s for {what}"
        await asyncio.sleep(0.02)


@dataclass(kw_only=True)
class Load:
    """Clients that ask one after another until told to stop, over HTTP and gRPC alternately."""

    address: str
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By outcome ("ok" or the error) and version."""
    latencies: list[float] = field(default_factory=list)
    stopping: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def num_answers(self) -> int:
        return sum(self.answers.values())

    @property
    def errors(self) -> dict[tuple[str, str], int]:
        return {key: count for key, count in self.answers.items() if key[0] != "ok"}

    def start(self, num_clients: int = 4, protocols: tuple[str, ...] = ("http", "grpc")) -> None:
        for number in range(num_clients):
            work = self._http() if protocols[number % len(protocols)] == "http" else self._grpc()
            self.tasks.append(asyncio.create_task(work))

    async def more(self, num_answers: int) -> None:
        wanted = self.num_answers + num_answers
        await eventually(lambda: _now(self.num_answers >= wanted), f"{num_answers} more answers", 60)

    async def stop(self) -> None:
        self.stopping = True
        await asyncio.gather(*self.tasks)

    async def _http(self) -> None:
        url = f"http://{self.address}/v2/models/embed_text/infer"
        async with aiohttp.ClientSession() as session:
            while not self.stopping:
                started = time.perf_counter()
                try:
                    async with session.post(url, json=HTTP_BODY) as answer:
                        outcome = "ok" if answer.status == 200 else f"{answer.status} {await answer.text()}"
                        version = (await answer.json()).get("model_version", "")
                except aiohttp.ClientError as error:
                    outcome, version = repr(error), ""
                self.note(outcome, version, started)

    async def _grpc(self) -> None:
        async with tritonclient.grpc.aio.InferenceServerClient(self.address) as client:
            while not self.stopping:
                started = time.perf_counter()
                try:
                    result = await client.infer("embed_text", text_inputs(tritonclient.grpc))
                    outcome, version = "ok", result.get_response().model_version
                except InferenceServerException as error:
                    outcome, version = str(error), ""
                self.note(outcome, version, started)

    def note(self, outcome: str, version: str, started: float) -> None:
        self.answers[outcome, version] += 1
        self.latencies.append(time.perf_counter() - started)


HTTP_BODY = {"inputs": [{"name": "TEXT", "datatype": "BYTES", "shape": [2], "data": ["cat", "狗"]}]}


def text_inputs(library: Any) -> list[Any]:
    """Two texts, as a tritonclient library sends them."""
    tensor = library.InferInput("TEXT", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"cat", "狗".encode()], dtype=object))
    return [tensor]


async def _now(value: bool) -> bool:
    return value


def world_of(route: GatewayRoute, *servers: ModelServer) -> World:
    replicas: dict[tuple[str, str, str], list[Replica]] = {}
    for server in servers:
        replicas.setdefault((route.namespace, route.service, server.version), []).append(server.replica)
    return World(
        routes={(route.namespace, route.service): route},
        replicas={key: tuple(sorted(found)) for key, found in replicas.items()},
    )


def route_of(weights: dict[str, int], **fields: Any) -> GatewayRoute:
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

        async def start(version: str, prefix: str = "", address: str = "127.0.0.1", **faults: Any) -> ModelServer:
            server = ModelServer(version=version, prefix=prefix, address=address, faults=Faults(**faults))
            await server.start()
            stack.push_async_callback(server.stack.aclose)
            return server

        yield start


@pytest.fixture
def route() -> Callable[..., GatewayRoute]:
    """Make the route of default/emoji from weights by version."""
    return route_of


@pytest.fixture
def world() -> Callable[..., World]:
    """Make a world from a route and its model servers."""
    return world_of


@pytest.fixture
def inputs() -> Callable[[Any], list[Any]]:
    return text_inputs


@pytest.fixture
def free_port() -> Callable[[], int]:
    return pick_port


@pytest.fixture
def until() -> Callable[..., Any]:
    return eventually


@pytest.fixture
async def load_on() -> AsyncIterator[Callable[[Gateway], Load]]:
    """Make load on a gateway; it stops with the test."""
    made: list[Load] = []

    def make(gateway: Gateway) -> Load:
        made.append(Load(address=gateway.address))
        return made[-1]

    yield make
    for load in made:
        await load.stop()


@pytest.fixture
def load(gateway: Gateway, load_on: Callable[[Gateway], Load]) -> Load:
    """Load on the gateway."""
    return load_on(gateway)


class Wire:
    """A line to the control plane that can be cut."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._ends: set[asyncio.StreamWriter] = set()
        self.num_lines = 0

    async def start(self, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._join, "127.0.0.1", port)

    def cut(self) -> None:
        """Hang up without a word, on both sides."""
        for end in self._ends:
            end.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
            return
        self.num_lines += 1
        ends = {writer, far_writer}
        self._ends |= ends
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))
        self._ends -= ends


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while some := await reader.read(1 << 16):
            writer.write(some)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """Start an Envoy with a control plane that knows nothing yet."""
    port = pick_port()
    async with _running_gateway(tmp_path, envoy_dials=port, discovery_port=port) as gateway:
        yield gateway


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    wire = Wire(pick_port())
    yield wire
    wire.cut()


@pytest.fixture
async def wired_gateway(tmp_path: Path, wire: Wire) -> AsyncIterator[Gateway]:
    """Start an Envoy that reaches its control plane over a wire."""
    port = pick_port()
    server = await wire.start(port)
    try:
        async with _running_gateway(tmp_path, envoy_dials=port, discovery_port=wire.port) as gateway:
            yield gateway
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def _running_gateway(folder: Path, *, envoy_dials: int, discovery_port: int) -> AsyncIterator[Gateway]:
    settings = EnvoySettings(
        node_id="test",
        gateway_port=pick_port(),
        admin_port=pick_port(),
        xds_port=envoy_dials,
        stats_port=pick_port(),
    )
    file = folder / "envoy.json"
    file.write_text(bootstrap(settings))
    registry = CollectorRegistry()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.admin_port}") as admin:
        gateway = Gateway(
            port=settings.gateway_port,
            admin=admin,
            settings=settings,
            registry=registry,
            tap_port=pick_port(),
            discovery=Discovery(registry),
            discovery_port=discovery_port,
        )
        await gateway.start_control_plane()
        with (folder / "envoy.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(*envoy_command(file), stderr=log)
        try:
            yield gateway
        finally:
            process.terminate()
            await asyncio.wait_for(process.wait(), 10)
            await gateway.stop_control_plane()
            print((folder / "envoy.log").read_text()[-6000:])
