"""The discovery service: tells every Envoy the newest configuration over one aggregated stream each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge

from belvedere_serving.gateway.conversation import Conversation, Refusal
from belvedere_serving.gateway.history import History
from belvedere_serving.gateway.listener import LISTENER, gateway_listener
from belvedere_serving.gateway.messages import ads_grpc, pack
from belvedere_serving.gateway.snapshot import Snapshot

log = logging.getLogger(__name__)

ADDRESS_KEY, PORT_KEY = "gateway_address", "gateway_port"
"""Node metadata: where this Envoy listens for clients."""
PATIENCE_SECONDS = 1.0
"""Envoy says all that it has in one breath when it comes; after so long a silence nothing more of it is to come."""


class Silence:
    """How long neither side has said anything. What happens elsewhere does not count: it may happen all the time."""

    def __init__(self, clock: Callable[[], float], patience_seconds: float) -> None:
        self._clock = clock
        self._patience_seconds = patience_seconds
        self._since = clock()

    def broken(self) -> None:
        """Begin anew: something was said."""
        self._since = self._clock()

    @property
    def over(self) -> bool:
        """Whether patience has run out."""
        return self._clock() - self._since >= self._patience_seconds

    @property
    def left(self) -> float | None:
        """The seconds until patience runs out; None when it has."""
        left = self._since + self._patience_seconds - self._clock()
        return left if left > 0 else None


class Discovery(ads_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """Serves the snapshot that was last published; until there is one, Envoys wait with what they have."""

    def __init__(self, registry: CollectorRegistry, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._patience_seconds = patience_seconds
        self._snapshot: Snapshot | None = None
        self._history = History()
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

    def recall(self, snapshot: Snapshot) -> None:
        """Know an Envoy that has this configuration from the process before this one."""
        self._history.recall(snapshot)

    async def StreamAggregatedResources(self, requests: AsyncIterator[Any], context: Any) -> AsyncGenerator[Any, None]:
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
        conversation, node = Conversation(_listeners(first.node), self._history), str(first.node.id)
        log.info("envoy connected: node=%s", node)
        self._hear(conversation, first, node)
        silence = Silence(asyncio.get_running_loop().time, self._patience_seconds)
        while True:
            if self._snapshot is not None:
                conversation.retarget(self._snapshot)
            answer = conversation.next_answer(patient=not silence.over)
            if answer is not None:
                self._answers.labels(_short(answer.type_url)).inc()
                yield answer
                silence.broken()
                continue
            await _wait(changed, silence.left if conversation.unfinished else None)
            while not inbox.empty():
                request = inbox.get_nowait()
                if request is None:
                    log.info("envoy disconnected: node=%s", node)
                    return
                self._hear(conversation, request, node)
                silence.broken()

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


async def _wait(changed: asyncio.Event, timeout_seconds: float | None) -> None:
    """Return when something changed, or when the time is over."""
    # Not wait_for: in Python 3.11 it loses a cancellation that comes in the same turn as the change.
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds):
            await changed.wait()
    changed.clear()


def _listeners(node: Any) -> dict[str, Any]:
    fields = node.metadata.fields
    if ADDRESS_KEY not in fields or PORT_KEY not in fields:
        log.error("envoy gets no listener: node=%s has no metadata %s and %s", node.id, ADDRESS_KEY, PORT_KEY)
        return {}
    port = int(fields[PORT_KEY].number_value)
    return {LISTENER: pack(gateway_listener(fields[ADDRESS_KEY].string_value, port))}


def _short(type_url: str) -> str:
    return type_url.rpartition(".")[2]
