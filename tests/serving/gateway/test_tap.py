"""The tap's memory: what it hears at once and what waits are bounded together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from prometheus_client import CollectorRegistry

from belvedere_serving.gateway import shadow
from belvedere_serving.gateway.candidate import CandidateClient
from belvedere_serving.gateway.routes import TAP_KEYS
from belvedere_serving.gateway.shadow import ShadowMetrics, ShadowTap
from belvedere_serving.gateway.world import World

SAMPLING = {"stable": "v1", "candidate": "v2", "percent": 100, "minimumCosine": 0.8}


class Call:
    """What Envoy says of an exchange, piece by piece as a test will have it."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[Any] = asyncio.Queue()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(zip(TAP_KEYS, ("default", "emoji", "http"), strict=True))

    async def requests(self) -> AsyncIterator[Any]:
        while (piece := await self.pieces.get()) is not None:
            yield piece

    def say(self, num_bytes: int) -> None:
        self.pieces.put_nowait(ext_proc.ProcessingRequest(request_body={"body": bytes(num_bytes)}))

    def end(self) -> None:
        self.pieces.put_nowait(None)


async def heard(tap: ShadowTap, call: Call) -> None:
    async for _ in tap.Process(call.requests(), call):
        raise AssertionError("nothing is ever answered")


async def test_what_is_heard_at_once_is_bounded_in_bytes(route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MAX_QUEUED_BYTES", 10)
    registry, client = CollectorRegistry(), CandidateClient()
    world = World(routes={("default", "emoji"): route({"v1": 100, "v2": 0}, shadow=SAMPLING)})
    tap = ShadowTap(lambda: world, client, ShadowMetrics(registry))

    def dropped() -> float | None:
        labels = {"namespace": "default", "service": "emoji", "candidate": "v2", "outcome": "dropped"}
        return registry.get_sample_value("belvedere_shadow_requests_total", labels)

    first, second, third = Call(), Call(), Call()
    hearing = asyncio.create_task(heard(tap, first))
    first.say(6)
    await asyncio.sleep(0)
    second.say(6)
    await heard(tap, second)
    assert dropped() == 1
    first.end()
    await hearing
    # What was given up, and what ended before it was whole, is no longer counted.
    third.say(10)
    third.end()
    await heard(tap, third)
    assert dropped() == 1
    await client.close()
