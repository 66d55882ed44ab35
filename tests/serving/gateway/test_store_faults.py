"""A store that is away for a while takes nothing from the gateway: what was known stays, and what is new comes when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from belvedere_platform.ports import free_ports
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import ENDPOINT_SLICE, Kind
from belvedere_platform.store.protocol import Listing, WatchEvent
from belvedere_serving.gateway.memory import load_memory
from belvedere_serving.gateway.serve import ControlPlane, ServeSettings

MANAGER = "belvedere-test"
LABELS = {"belvedere.dev/service": "emoji", "app.kubernetes.io/managed-by": "belvedere"}


class Interrupted:
    """The store of a file, which can go away and come back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.store = EmbeddedStore(path)

    async def go(self) -> None:
        """Refuse everything from now on, running watches too."""
        await self.store.close()

    def come_back(self) -> None:
        self.store = EmbeddedStore(self._path)

    async def list(self, kind: Kind, namespace: str | None = None, **arguments: Any) -> Listing:
        return await self.store.list(kind, namespace, **arguments)

    def watch(self, kind: Kind, namespace: str | None = None, **arguments: Any) -> AsyncIterator[WatchEvent]:
        return self.store.watch(kind, namespace, **arguments)


def objects(route: Any, weight: int) -> list[dict[str, Any]]:
    text = route({"v1": weight, "v2": 100 - weight}).model_dump_json(by_alias=True)
    route_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "emoji-gateway", "namespace": "default", "labels": LABELS},
        "data": {"route.json": text},
    }
    slices = [
        {
            "apiVersion": ENDPOINT_SLICE.api_version,
            "kind": ENDPOINT_SLICE.kind,
            "addressType": "IPv4",
            "metadata": {
                "name": f"emoji-{version}",
                "namespace": "default",
                "labels": {**LABELS, "belvedere.dev/version": version},
                "annotations": {"belvedere.dev/http-path-prefix": f"/{version}"},
            },
            "ports": [{"name": "http", "port": 8000, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": True}}],
        }
        for version in ("v1", "v2")
    ]
    return [*slices, route_map]


async def write(store: EmbeddedStore, route: Any, weight: int) -> None:
    for manifest in objects(route, weight):
        await store.apply(manifest, field_manager=MANAGER)


@asynccontextmanager
async def running(store: Any, ports: list[int], memory: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Run a control plane; gives a client of its metrics page."""
    xds, metrics, tap = ports
    settings = ServeSettings(xds_port=xds, metrics_port=metrics, tap_port=tap, memory=memory)
    task = asyncio.create_task(ControlPlane(store, settings, CollectorRegistry()).run())
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{metrics}", timeout=60) as client:
            yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is true: what is served shows on a page, which cannot be awaited."""
    deadline = asyncio.get_running_loop().time() + 60
    while not await check():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.02)


def gives(client: httpx.AsyncClient, weight: int) -> Callable[[], Awaitable[bool]]:
    """Whether Envoy is told to give version v1 this weight."""
    sample = 'belvedere_gateway_effective_weight{namespace="default",protocol="http",service="emoji",version="v1"}'

    async def check() -> bool:
        try:
            return f"{sample} {weight}.0" in (await client.get("/metrics")).text
        except httpx.HTTPError:
            return False

    return check


@pytest.fixture
def ports() -> list[int]:
    return free_ports(3)


async def test_while_the_store_is_away_the_last_configuration_stays_and_the_next_one_follows(
    tmp_path: Path, route: Any, ports: list[int]
) -> None:
    store = Interrupted(tmp_path / "store.db")
    await write(store.store, route, 90)
    async with running(store, ports, tmp_path / "memory.json") as client:
        await until(gives(client, 90))
        await store.go()
        meanwhile = EmbeddedStore(tmp_path / "store.db")
        await write(meanwhile, route, 40)
        await meanwhile.close()
        assert await gives(client, 90)()
        assert (await client.get("/readyz")).status_code == 200
        store.come_back()
        await until(gives(client, 40))
    await store.go()


async def test_a_gateway_started_while_the_store_is_away_serves_what_the_one_before_it_knew(
    tmp_path: Path, route: Any, ports: list[int]
) -> None:
    store, memory = Interrupted(tmp_path / "store.db"), tmp_path / "memory.json"
    await write(store.store, route, 90)
    async with running(store, ports, memory) as client:
        await until(gives(client, 90))
    remembered = [one for found in load_memory(memory).replicas.values() for one in found]
    assert [replica.http_path_prefix for _, replica in remembered] == ["/v1", "/v2"]
    await store.go()
    async with running(store, ports, memory) as client:
        await until(gives(client, 90))
        assert (await client.get("/readyz")).status_code == 200
        store.come_back()
        await write(store.store, route, 40)
        await until(gives(client, 40))
    await store.go()


async def test_without_memory_a_gateway_is_not_ready_before_it_has_read_the_store(
    tmp_path: Path, ports: list[int]
) -> None:
    store = Interrupted(tmp_path / "store.db")
    await store.go()
    async with running(store, ports, tmp_path / "memory.json") as client:

        async def answers() -> bool:
            try:
                return (await client.get("/readyz")).status_code == 503
            except httpx.HTTPError:
                return False

        await until(answers)


async def test_a_memory_that_cannot_be_written_ends_nothing(
    tmp_path: Path, route: Any, ports: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    store = Interrupted(tmp_path / "store.db")
    await write(store.store, route, 90)
    async with running(store, ports, tmp_path / "file" / "memory.json") as client:
        await until(gives(client, 90))
        await write(store.store, route, 40)
        await until(gives(client, 40))
    await store.go()
    said = [record.getMessage() for record in caplog.records if "cannot be written down" in record.getMessage()]
    assert len(said) == 1, "said once, not at every change"


def test_a_memory_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    file = tmp_path / "memory.json"
    for text in ("[]", "{", '{"routes": [], "replicas": [{"namespace": "a"}]}', '{"routes": 1, "replicas": []}'):
        file.write_text(text)
        assert not load_memory(file).routes
