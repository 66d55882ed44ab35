"""The store on a real API server, beyond the contract: pages, watches that end, a server that forgets, and bad kinds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path

import pytest

from belvedere_operators.controllers.status import status_fields
from belvedere_platform.errors import Gone, NotFound, Unavailable
from belvedere_platform.resources.engine import EngineStatus, ParityReport
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.kinds import CONFIG_MAP, ENDPOINT_SLICE, ENGINE, RAY_JOB
from belvedere_platform.store.kubernetes import KubernetesStore

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

PATIENCE_SECONDS = 30


@pytest.fixture
async def store(kubeconfig: Path) -> AsyncIterator[KubernetesStore]:
    """A store that turns its pages and takes up its watches often."""
    opened = KubernetesStore(kubeconfig=str(kubeconfig), page_size=2, watch_seconds=1)
    yield opened
    await opened.close()


def config_map(namespace: str, name: str, **data: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


async def test_a_list_of_many_pages_is_whole_and_says_what_each_item_is(store: KubernetesStore, namespace: str) -> None:
    names = [f"page-{number}" for number in range(7)]
    for name in names:
        await store.apply(config_map(namespace, name), field_manager="test")
    listing = await store.list(CONFIG_MAP, namespace)
    assert [item["metadata"]["name"] for item in listing.items] == names
    assert {(item["apiVersion"], item["kind"]) for item in listing.items} == {("v1", "ConfigMap")}
    assert all("managedFields" not in item["metadata"] for item in listing.items)
    from_memory = await store.list(CONFIG_MAP, namespace, not_older_than=listing.resource_version)
    assert from_memory.items == listing.items


async def test_a_status_can_lose_what_it_had(store: KubernetesStore, namespace: str) -> None:
    spec = {"modelVersion": "v1", "target": {"precision": "int8"}}
    metadata = {"name": "one", "namespace": namespace}
    engine = {"apiVersion": ENGINE.api_version, "kind": ENGINE.kind, "metadata": metadata, "spec": spec}
    await store.apply(engine, field_manager="test")
    parity = ParityReport(cosine_min=0.9, cosine_mean=0.95, top1_agreement=1, samples=8)
    for status in (
        EngineStatus(observed_generation=1, parity={"embed_text": parity}),
        EngineStatus(observed_generation=1),
    ):
        await store.apply_status({**engine, "status": status_fields(status)}, field_manager="test")
        found = (await store.get(ENGINE, "one", namespace)).get("status") or {}
        assert EngineStatus.model_validate(found) == status


async def test_a_watch_outlives_what_the_server_grants(
    store: KubernetesStore, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = (await store.list(CONFIG_MAP, namespace)).resource_version
    requests = 0
    taken_up = asyncio.Event()
    lines = store._transport.lines

    def counted(path: str, query: dict[str, str]) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        nonlocal requests
        requests += 1
        if requests == 3:
            taken_up.set()
        return lines(path, query)

    monkeypatch.setattr(store._transport, "lines", counted)

    async def first() -> str:
        async for event in store.watch(CONFIG_MAP, namespace, resource_version=since):
            if event.type == "ADDED":
                return str(event.object["metadata"]["name"])
        raise AssertionError("the watch ended")

    async with asyncio.timeout(PATIENCE_SECONDS):
        watching = asyncio.create_task(first())
        await taken_up.wait()
        await store.apply(config_map(namespace, "late"), field_manager="test")
        assert await watching == "late"


async def watch_until_it_fails(store: KubernetesStore, kind: Kind, namespace: str, version: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for _ in store.watch(kind, namespace, resource_version=version):
            pass


async def test_a_watch_from_a_forgotten_version_is_gone(store: KubernetesStore, namespace: str) -> None:
    # What the server remembers of a kind begins when its definition was installed.
    with pytest.raises(Gone, match="list again"):
        await watch_until_it_fails(store, RAY_JOB, namespace, "1")


async def test_a_kind_that_the_cluster_does_not_have_is_unavailable(store: KubernetesStore, namespace: str) -> None:
    unknown = Kind(api_version="example.org/v1", kind="Unicorn", plural="unicorns")
    with pytest.raises(Unavailable, match="install the resource definition"):
        await store.list(unknown, namespace)
    with pytest.raises(Unavailable, match="install the resource definition"):
        await watch_until_it_fails(store, unknown, namespace, "5")


async def test_a_namespace_that_is_not_there_is_named(store: KubernetesStore) -> None:
    with pytest.raises(NotFound, match='namespaces "nowhere" not found'):
        await store.apply(config_map("nowhere", "a"), field_manager="test")


async def test_a_large_object_comes_whole_through_a_watch(store: KubernetesStore, namespace: str) -> None:
    since = (await store.list(CONFIG_MAP, namespace)).resource_version
    await store.apply(config_map(namespace, "large", data="x" * 1_000_000), field_manager="test")
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with aclosing(store.watch(CONFIG_MAP, namespace, resource_version=since)) as events:  # type: ignore[type-var]
            async for event in events:
                if event.type == "ADDED":
                    assert len(event.object["data"]["data"]) == 1_000_000
                    break


async def test_a_closed_store_answers_no_more(kubeconfig: Path) -> None:
    store = KubernetesStore(kubeconfig=str(kubeconfig))
    await store.list(CONFIG_MAP)
    await store.close()
    with pytest.raises(Unavailable, match="closed"):
        await store.list(CONFIG_MAP)


async def test_the_children_of_our_resources_are_taken_as_they_are(store: KubernetesStore, namespace: str) -> None:
    job = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": "run", "namespace": namespace},
        "spec": {"entrypoint": "belvedere train", "clusterSelector": {"ray.io/cluster": "local"}},
    }
    assert (await store.apply(job, field_manager="test"))["spec"]["entrypoint"] == "belvedere train"
    observed = await store.apply_status(job | {"status": {"jobStatus": "RUNNING"}}, field_manager="test")
    assert observed["status"]["jobStatus"] == "RUNNING"
    assert [item["kind"] for item in (await store.list(RAY_JOB, namespace)).items] == ["RayJob"]
    replica = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "replica", "namespace": namespace},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 30000}, {"name": "grpc", "port": 40000}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}],
    }
    await store.apply(replica, field_manager="test")
    assert len((await store.list(ENDPOINT_SLICE, namespace)).items) == 1


async def test_what_a_resource_of_ours_owns_is_collected(store: KubernetesStore, namespace: str) -> None:
    engine = {
        "apiVersion": ENGINE.api_version,
        "kind": "Engine",
        "metadata": {"name": "engine", "namespace": namespace},
        "spec": {"modelVersion": "v1"},
    }
    owner = await store.apply(engine, field_manager="test")
    reference = {"apiVersion": ENGINE.api_version, "kind": "Engine", "name": "engine", "uid": owner["metadata"]["uid"]}
    child = config_map(namespace, "child")
    child["metadata"]["ownerReferences"] = [reference]
    since = (await store.apply(child, field_manager="test"))["metadata"]["resourceVersion"]
    await store.delete(ENGINE, "engine", namespace)
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with aclosing(store.watch(CONFIG_MAP, namespace, resource_version=since)) as events:  # type: ignore[type-var]
            async for event in events:
                if event.type == "DELETED":
                    assert event.object["metadata"]["name"] == "child"
                    break
