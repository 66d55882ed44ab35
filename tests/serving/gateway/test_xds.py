"""The stream itself: who waits for whom, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2
from prometheus_client import CollectorRegistry

from belvedere_serving.gateway.snapshot import CLUSTERS, build_snapshot
from belvedere_serving.gateway.world import World
from belvedere_serving.gateway.xds import Discovery, Silence


async def test_a_stream_that_waits_for_envoy_is_not_put_off_by_what_happens_elsewhere() -> None:
    discovery = Discovery(CollectorRegistry(), patience_seconds=0.02)
    answered = asyncio.Event()

    async def requests() -> AsyncIterator[Any]:
        """An Envoy that comes back with clusters of another time, and has nothing else to ask."""
        yield discovery_pb2.DiscoveryRequest(type_url=CLUSTERS, version_info="of another time")
        await answered.wait()

    async def busy() -> None:
        for number in range(1, 1 << 30):
            discovery.publish(build_snapshot(World(), tap_address="127.0.0.1", tap_port=1 + number % 2))
            await asyncio.sleep(0)

    publishing = asyncio.create_task(busy())
    try:
        async with asyncio.timeout(30), aclosing(discovery.StreamAggregatedResources(requests(), None)) as answers:
            assert (await anext(answers)).type_url == CLUSTERS
    finally:
        answered.set()
        publishing.cancel()


def test_patience_is_counted_from_the_last_word() -> None:
    now = 10.0
    silence = Silence(lambda: now, 2)
    assert (silence.over, silence.left) == (False, 2)
    now = 11.5
    assert (silence.over, silence.left) == (False, 0.5)
    silence.broken()
    now = 13
    assert (silence.over, silence.left) == (False, 0.5)
    now = 13.5
    assert (silence.over, silence.left) == (True, None)
