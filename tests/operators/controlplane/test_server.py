"""Health, readiness that means it, metrics, and the webhook behind its secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, Gauge

from belvedere_operators.alerts.webhook import AlertWebhook
from belvedere_operators.controlplane.server import OperatorServer, Parts, control_plane_parts, platform_parts
from belvedere_operators.runtime import Caches, ControlPlane, SystemClock
from belvedere_platform.errors import Unavailable
from belvedere_platform.store.embedded import EmbeddedStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedStore]:
    store = EmbeddedStore(tmp_path / "store.db")
    yield store
    await store.close()


def server(store: EmbeddedStore, parts: Parts | Exception) -> OperatorServer:
    async def look() -> Parts:
        if isinstance(parts, Exception):
            raise parts
        return parts

    registry = CollectorRegistry()
    Gauge("belvedere_it", "it", registry=registry).set(7)
    webhook = AlertWebhook(store, clock=SystemClock(), secret="hush")
    return OperatorServer(address="127.0.0.1", port=0, parts=look, webhook=webhook, registry=registry)


@pytest.mark.parametrize(
    ("parts", "status"),
    [({"store": "ready"}, 200), ({"store": "ready", "ray": "starting"}, 503), (Unavailable("gone"), 503)],
)
async def test_readiness_is_the_readiness_of_every_part(
    store: EmbeddedStore, parts: Parts | Exception, status: int
) -> None:
    async with TestClient(TestServer(server(store, parts).application())) as client:
        answer = await client.get("/readyz")
        assert answer.status == status
        body = await answer.json()
        assert body["ready"] is (status == 200)
        assert body["parts"] == (parts if isinstance(parts, dict) else {"store": "gone"})


async def test_health_metrics_and_the_secret(store: EmbeddedStore) -> None:
    async with TestClient(TestServer(server(store, {}).application())) as client:
        assert (await client.get("/healthz")).status == 200
        assert "belvedere_it 7.0" in await (await client.get("/metrics")).text()
        assert (await client.post("/alerts", json={})).status == 401


async def test_parts_say_what_is_not_available(store: EmbeddedStore) -> None:
    for name in ("good", "bad", "new"):
        manifest = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "namespace": "belvedere-system"},
            "spec": {"replicas": 1},
        }
        applied = await store.apply(manifest, field_manager="test")
        available = {"type": "Available", "status": "True" if name == "good" else "False", "message": "exited with 1"}
        status = {"observedGeneration": applied["metadata"]["generation"], "conditions": [available]}
        if name != "new":
            await store.apply_status({**manifest, "status": status}, field_manager="test")
    parts = await platform_parts(store, "belvedere-system")
    assert parts == {"good": "ready", "bad": "exited with 1", "new": "starting"}


async def test_control_plane_is_ready_when_its_caches_are(store: EmbeddedStore) -> None:
    plane = ControlPlane(Caches(store, clock=SystemClock()), [])
    assert await control_plane_parts(store, plane) == {"control plane": "reading the store", "store": "ready"}
    task = asyncio.create_task(plane.run())
    await plane.ready.wait()
    assert await control_plane_parts(store, plane) == {"control plane": "ready", "store": "ready"}
    plane.stop()
    await task


async def test_port_that_cannot_be_had_is_named(store: EmbeddedStore) -> None:
    async with TestServer(server(store, {}).application()) as other:
        taken = server(store, {})
        taken.port = other.port or 0
        with pytest.raises(Unavailable, match=f"port {other.port} of 127.0.0.1 cannot be had"):
            await taken.run()
