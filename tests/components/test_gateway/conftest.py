"""Fixtures of the gateway's tests: a real Envoy, model servers that fail as they are told, load, and a wire to cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from belvedere_platform import ports
from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.world import World

from .cluster_parts import start
from .model_server import Faults, ModelServer
from .running import Gateway, route_of, running_gateway, world_of
from .traffic import Load, eventually, text_inputs
from .wire import Wire

__all__ = ["start"]


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
    return ports.free_port


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


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    """Start an Envoy with a control plane that knows nothing yet."""
    port = ports.free_port()
    async with running_gateway(tmp_path, envoy_dials=port, discovery_port=port) as gateway:
        yield gateway


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    """A line to a control plane that is not there yet."""
    wire = Wire(ports.free_port())
    await wire.open()
    yield wire
    await wire.close()


@pytest.fixture
async def wired_gateway(tmp_path: Path, wire: Wire) -> AsyncIterator[Gateway]:
    """Start an Envoy that reaches its control plane over a wire."""
    async with running_gateway(tmp_path, envoy_dials=wire.near_port, discovery_port=wire.port) as gateway:
        yield gateway
