"""The discovery service: tells every Envoy the newest configuration over one aggregated stream each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge

from belvedere_serving.gateway.conversation import Conversation, Refusal
from belvedere_serving.gateway.listener import LISTENER, gateway_listener
from belvedere_serving.gateway.messages import ads_grpc, pack
from belvedere_serving.gateway.snapshot import Snapshot

log = logging.getLogger(__name__)

ADDRESS_KEY, PORT_KEY = "gateway_address", "gateway_port"
"""Node metadata: where this Envoy listens for clients."""
_PATIENCE_SECONDS = 5.0


class Discovery(ads_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Serves the snapshot that was last published; until there is one, Envoys wait with what they have."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._snapshot: Snapshot | None = None
        self._changed: set[asyncio.Event] = set()
        self._envoys = Gauge("belvedere_gateway_envoys", "Envoys with an open stream", registry=registry)
        self._answers = Counter(
            "belvedere_gateway_discovery_answers_total", "configurations sent", ["type"], registry=registry
        )
        self._refusals = Counter(
            "belvedere_gateway_discovery_refusals_total",
            "configurations that Envoy refused",
            ["type"],
            registry=registry,
        )

    def publish(self, snapshot: Snapshot) -> None:
        """Make this the configuration that every Envoy comes to."""
        self._snapshot = snapshot
        for event in self._changed:
            event.set()

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """Hold one Envoy's stream."""
        changed = asyncio.Event()
        inbox: asyncio.Queue[Any | None] = asyncio.Queue()
        reader = asyncio.create_task(_read(requests, inbox, changed))
        self._changed.add(changed)
        self._envoys.inc()
        try:
            async for answer in self._converse(inbox, changed):
                yield answer
        finally:
            self._changed.discard(changed)
            self._envoys.dec()
            reader.cancel()

    async def _converse(self, inbox: asyncio.Queue[Any | None], changed: asyncio.Event) -> AsyncIterator[Any]:
        first = await inbox.get()
        if first is None:
            return
        conversation, target, node = Conversation(_listeners(first.node)), None, str(first.node.id)
        log.info("envoy connected: node=%s", node)
        self._hear(conversation, first, node)
        patient = True
        while True:
            if self._snapshot is not None and self._snapshot is not target:
                target = self._snapshot
                conversation.retarget(target)
            answer = conversation.next_answer(patient=patient)
            if answer is not None:
                self._answers.labels(_short(answer.type_url)).inc()
                yield answer
                continue
            patient = await _wait(changed, _PATIENCE_SECONDS if conversation.unfinished else None)
            while not inbox.empty():
                request = inbox.get_nowait()
                if request is None:
                    log.info("envoy disconnected: node=%s", node)
                    return
                self._hear(conversation, request, node)

    def _hear(self, conversation: Conversation, request: Any, node: str) -> None:
        refusal: Refusal | None = conversation.receive(request)
        if refusal is not None:
            self._refusals.labels(_short(refusal.type_url)).inc()
            log.error(
                "envoy refused a configuration and keeps the one before: node=%s type=%s version=%s reason=%s",
                node, _short(refusal.type_url), refusal.version, refusal.reason,
            )  # fmt: skip


async def serve_discovery(discovery: Discovery, address: str) -> Any:
    """Start the server. Raises OSError-like RuntimeError from grpc when the port is taken."""
    options = [
        ("grpc.so_reuseport", 0),
        # Envoy pings an idle stream every ten seconds; gRPC would take that for an attack and hang up again and again.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
    server = grpc.aio.server(options=options)
    ads_grpc.add_AggregatedDiscoveryServiceServicer_to_server(discovery, server)
    server.add_insecure_port(address)
    await server.start()
    return server


async def _read(requests: AsyncIterator[Any], inbox: asyncio.Queue[Any | None], changed: asyncio.Event) -> None:
    try:
        async for request in requests:
            inbox.put_nowait(request)
            changed.set()
    finally:
        inbox.put_nowait(None)
        changed.set()


async def _wait(changed: asyncio.Event, timeout_seconds: float | None) -> bool:
    """Return whether something changed in time."""
    try:
        await asyncio.wait_for(changed.wait(), timeout_seconds)
    except TimeoutError:
        return False
    changed.clear()
    return True


def _listeners(node: Any) -> dict[str, Any]:
    fields = node.metadata.fields
    if ADDRESS_KEY not in fields or PORT_KEY not in fields:
        log.error("envoy gets no listener: node=%s has no metadata %s and %s", node.id, ADDRESS_KEY, PORT_KEY)
        return {}
    port = int(fields[PORT_KEY].number_value)
    return {LISTENER: pack(gateway_listener(fields[ADDRESS_KEY].string_value, port))}


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]
