"""A real Envoy that loses its discovery stream, at whatever moment, has the newest configuration soon after it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from belvedere_serving.gateway.world import World

pytestmark = pytest.mark.slow


@asynccontextmanager
async def repeated(publish: Callable[[], None]) -> AsyncIterator[None]:
    """Publish again and again, as a busy store does."""

    async def repeat() -> None:
        while True:
            publish()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()


def cut_and_mended(wire: Any) -> Callable[[], Awaitable[bool]]:
    """Cut the wire; the answer tells whether Envoy has dialled again."""
    lines = wire.num_lines
    wire.cut()

    async def mended() -> bool:
        return bool(wire.num_lines > lines)

    return mended


async def until_listening(gateway: Any) -> None:
    """Wait until an Envoy without services has all that there is."""
    gateway.publish(World())
    await gateway.until("names no service of this gateway", "/config_dump?resource=dynamic_route_configs")


async def test_the_first_service_arrives_after_a_lost_stream_however_much_goes_on(
    wired_gateway: Any, wire: Any, servers: Any, route: Any, world: Any
) -> None:
    gateway = wired_gateway
    await until_listening(gateway)
    wire.cut()
    state = world(route({"v1": 100}), await servers("v1"))
    async with repeated(lambda: gateway.publish(state)):
        await gateway.until_weights(v1=100)


async def test_the_first_service_arrives_from_a_control_plane_that_does_not_know_its_envoy(
    gateway: Any, servers: Any, route: Any, world: Any
) -> None:
    await until_listening(gateway)
    # The next one has its tap elsewhere, so the clusters that Envoy has are none that it could know.
    gateway.tap_port += 1
    await gateway.replace_control_plane()
    state = world(route({"v1": 100}), await servers("v1"))
    async with repeated(lambda: gateway.publish(state)):
        await gateway.until_weights(v1=100)


async def test_a_service_replaced_while_the_stream_was_lost_loses_no_request(
    wired_gateway: Any, wire: Any, servers: Any, route: Any, world: Any, load_on: Any
) -> None:
    gateway, one, two = wired_gateway, await servers("v1", prefix="/one"), await servers("v2", prefix="/two")
    await gateway.put(route({"v1": 100}), one)
    await gateway.until_weights(v1=100)
    load = load_on(gateway)
    load.start()
    await load.more(100)
    wire.cut()
    gateway.publish(world(route({"v2": 100}), two))
    await gateway.until_weights(v2=100)
    await load.more(100)
    await load.stop()
    assert load.errors == {}


async def test_a_stream_lost_in_the_middle_of_a_change_loses_no_request(
    wired_gateway: Any, wire: Any, servers: Any, route: Any, world: Any, load_on: Any, until: Any
) -> None:
    gateway = wired_gateway
    replicas = [await servers("v1", prefix="/one"), await servers("v2", prefix="/two")]
    await gateway.put(route({"v1": 100}), replicas[0])
    await gateway.until_weights(v1=100)
    load = load_on(gateway)
    load.start()
    for number in range(1, 9):
        new = replicas[number % 2]
        # Each change takes away all that the one before brought, and each cut comes a little later in it.
        gateway.publish(world(route({new.version: 100}, routing={"timeoutSeconds": number}), new))
        await asyncio.sleep(0.002 * number)
        await until(cut_and_mended(wire), "Envoy to come back")
        await gateway.until_weights(**{new.version: 100})
    await load.more(100)
    await load.stop()
    assert load.errors == {}
