"""The shadow tap: hears sampled requests with the stable version's answers, asks the candidate the same, and counts agreement.

It stands beside the way of a request. Envoy sends it copies and waits for nothing; when it is slow it drops and counts,
when it is dead the client notices nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

from belvedere_platform.errors import Unavailable
from belvedere_platform.resources.gateway_route import ShadowSampling
from belvedere_platform.telemetry.gateway_metrics import SHADOW_COMPARISONS, SHADOW_COSINE, SHADOW_REQUESTS
from belvedere_serving.gateway.candidate import CandidateClient
from belvedere_serving.gateway.comparison import (
    Exchange,
    Recording,
    Unreadable,
    cosines,
    replay_of,
    stable_answer,
)
from belvedere_serving.gateway.messages import ext_proc_grpc
from belvedere_serving.gateway.routes import TAP_KEYS
from belvedere_serving.gateway.world import World

log = logging.getLogger(__name__)

COSINE_EDGES = (-0.5, 0, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1)
MAX_QUEUED = 64
MAX_QUEUED_BYTES = 128 << 20
MAX_OPEN = 256
NUM_WORKERS = 4


class ShadowMetrics:
    """What the tap counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        compared = ["namespace", "service", "candidate", "model"]
        self.comparisons = Counter(
            SHADOW_COMPARISONS.removesuffix("_total"), "embeddings compared", [*compared, "agreed"], registry=registry
        )
        self.cosine = Histogram(
            SHADOW_COSINE, "cosine of the two answers", compared, buckets=COSINE_EDGES, registry=registry
        )
        self.requests = Counter(
            SHADOW_REQUESTS.removesuffix("_total"),
            "sampled requests by what became of them",
            ["namespace", "service", "candidate", "outcome"],
            registry=registry,
        )


class ShadowTap(ext_proc_grpc.ExternalProcessorServicer):  # type: ignore[misc]
    """Collects exchanges from Envoy and compares them in the background, as far as there is room."""

    def __init__(self, world: Callable[[], World], client: CandidateClient, metrics: ShadowMetrics) -> None:
        self._world = world
        self._client = client
        self._metrics = metrics
        self._queue: asyncio.Queue[Exchange] = asyncio.Queue(MAX_QUEUED)
        self._queued_bytes = 0
        self._num_open = 0
        self._open_bytes = 0
        self._turn = 0

    async def Process(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Hear one exchange. Nothing is ever answered."""
        told = dict(context.invocation_metadata())
        namespace, service, protocol = (str(told.get(key, "")) for key in TAP_KEYS)
        if self._num_open >= MAX_OPEN:
            self._count(namespace, service, "dropped")
            return
        self._num_open += 1
        try:
            exchange = await self._record(Recording(namespace=namespace, service=service, protocol=protocol), requests)
            if exchange is not None:
                self._offer(exchange)
        except Unreadable as error:
            log.debug("exchange not compared: %s", error)
            self._count(namespace, service, "unreadable")
        finally:
            self._num_open -= 1
        return
        yield  # makes this a stream of answers, an empty one

    async def _record(self, recording: Recording, requests: AsyncIterator[Any]) -> Exchange | None:
        """Return the exchange when it is whole; None when it ends before, or there is no room for what is heard at once."""
        held = 0
        try:
            async for message in requests:
                exchange = recording.take(message)
                self._open_bytes += recording.num_bytes - held
                held = recording.num_bytes
                if self._open_bytes + self._queued_bytes > MAX_QUEUED_BYTES:
                    self._count(recording.namespace, recording.service, "dropped")
                    return None
                if exchange is not None:
                    return exchange
        finally:
            self._open_bytes -= held
        return None

    def _offer(self, exchange: Exchange) -> None:
        if not exchange.is_inference:
            return
        if not exchange.succeeded:
            self._count(exchange.namespace, exchange.service, "stable_failed")
        elif self._queue.full() or self._queued_bytes + exchange.num_bytes > MAX_QUEUED_BYTES:
            self._count(exchange.namespace, exchange.service, "dropped")
        else:
            self._queued_bytes += exchange.num_bytes
            self._queue.put_nowait(exchange)

    async def run(self) -> None:
        """Compare what was collected until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_WORKERS):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            exchange = await self._queue.get()
            self._queued_bytes -= exchange.num_bytes
            try:
                outcome = await self._compare(exchange)
            except Unreadable as error:
                outcome = "unreadable"
                log.debug("exchange not compared: %s", error)
            except Unavailable as error:
                outcome = "candidate_failed"
                log.info("candidate did not answer a shadow request: %s", error)
            if outcome is not None:
                self._count(exchange.namespace, exchange.service, outcome)

    async def _compare(self, exchange: Exchange) -> str | None:
        """Return what became of it, or None when the rollout it belongs to is over."""
        route = self._world().routes.get((exchange.namespace, exchange.service))
        if route is None or route.shadow is None:
            return None
        replicas = self._world().routable(
            (exchange.namespace, exchange.service, route.shadow.candidate), exchange.protocol
        )
        if not replicas:
            return "no_replica"
        self._turn += 1
        replica = replicas[self._turn % len(replicas)]
        stable = stable_answer(exchange)
        candidate = await self._client.ask(
            replica, exchange.protocol, replay_of(exchange), route.routing.timeout_seconds
        )
        self._count_items(exchange, route.shadow, stable.model_name, cosines(stable, candidate))
        return "compared"

    def _count_items(self, exchange: Exchange, shadow: ShadowSampling, model: str, found: list[float]) -> None:
        labels = (exchange.namespace, exchange.service, shadow.candidate, model)
        for cosine in found:
            agreed = "true" if cosine >= shadow.minimum_cosine else "false"
            self._metrics.comparisons.labels(*labels, agreed).inc()
            self._metrics.cosine.labels(*labels).observe(cosine)

    def _count(self, namespace: str, service: str, outcome: str) -> None:
        route = self._world().routes.get((namespace, service))
        if route is not None and route.shadow is not None:
            self._metrics.requests.labels(namespace, service, route.shadow.candidate, outcome).inc()


async def serve_tap(tap: ShadowTap, address: str) -> Any:
    """Start the tap's server."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_QUEUED_BYTES)])
    ext_proc_grpc.add_ExternalProcessorServicer_to_server(tap, server)
    server.add_insecure_port(address)
    await server.start()
    return server
