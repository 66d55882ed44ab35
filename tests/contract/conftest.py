"""The stores that the contract is held against, and objects to put into them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from belvedere_platform.errors import NotFound
from belvedere_platform.store import Kind, Manifest, ObjectStore
from belvedere_platform.store.embedded import EmbeddedStore

PATIENCE_SECONDS = 60.0


@pytest.fixture(
    params=[
        "embedded",
        pytest.param("kubernetes", marks=pytest.mark.cluster),
    ]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """Each store in turn. On a cluster Belvedere's CRDs are installed, and nothing acts on Belvedere's kinds."""
    opened: ObjectStore
    if request.param == "embedded":
        opened = EmbeddedStore(tmp_path / "store.db")
    else:
        from belvedere_platform.store.kubernetes import KubernetesStore

        opened = KubernetesStore(kubeconfig=str(request.getfixturevalue("kubeconfig")))
    yield opened
    await opened.close()


@pytest.fixture
async def namespace(store: ObjectStore, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A namespace of this test's own. The embedded store has none to make; a cluster's is deleted afterwards."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    if isinstance(store, EmbeddedStore):
        yield name
        return
    from kubernetes import client, config

    with config.new_client_from_config(str(request.getfixturevalue("kubeconfig"))) as api:
        namespaces = client.CoreV1Api(api)
        await asyncio.to_thread(namespaces.create_namespace, {"metadata": {"name": name}})
        yield name
        await asyncio.to_thread(namespaces.delete_namespace, name)


@pytest.fixture
def config_map(namespace: str) -> Callable[..., Manifest]:
    """Make a ConfigMap: the simplest object, all of it data."""

    def make(name: str = "settings", data: dict[str, str] | None = None, **metadata: Any) -> Manifest:
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace, **metadata},
            "data": {"colour": "blue"} if data is None else data,
        }

    return make


@pytest.fixture
def training_run(namespace: str) -> Callable[..., Manifest]:
    """Make a TrainingRun: an object with a schema, defaults, rules and a status."""

    def make(name: str = "run", metadata: dict[str, Any] | None = None, **spec: Any) -> Manifest:
        return {
            "apiVersion": "belvedere.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": name, "namespace": namespace, **(metadata or {})},
            "spec": {"model": "emoji", "data": {"dataset": "emoji"}, "optimization": {"pairs": 1000}, **spec},
        }

    return make


@pytest.fixture
def owned_by() -> Callable[..., dict[str, Any]]:
    """Make the metadata that names an object's owners."""

    def make(*owners: Manifest) -> dict[str, Any]:
        return {
            "ownerReferences": [
                {
                    "apiVersion": owner["apiVersion"],
                    "kind": owner["kind"],
                    "name": owner["metadata"]["name"],
                    "uid": owner["metadata"]["uid"],
                    "blockOwnerDeletion": True,
                }
                for owner in owners
            ]
        }

    return make


@pytest.fixture
def watched(store: ObjectStore, namespace: str) -> Callable[..., Awaitable[list[tuple[str, str]]]]:
    """Watch until so many changes came, and return their types with the objects' names."""

    async def watch(kind: Kind, since: str, count: int, **options: Any) -> list[tuple[str, str]]:
        changes: list[tuple[str, str]] = []
        async with asyncio.timeout(PATIENCE_SECONDS):
            async with aclosing(store.watch(kind, namespace, resource_version=since, **options)) as events:  # type: ignore[type-var]
                async for event in events:
                    if event.type != "BOOKMARK":
                        changes.append((event.type, event.object["metadata"]["name"]))
                    if len(changes) == count:
                        return changes
        raise AssertionError("the watch ended by itself")

    return watch


@pytest.fixture
def gone(store: ObjectStore) -> Callable[[Kind, str, str], Awaitable[None]]:
    """Wait until an object is gone. The embedded store collects at once, a cluster soon."""

    async def wait(kind: Kind, name: str, namespace: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    await store.get(kind, name, namespace)
                except NotFound:
                    return
                await asyncio.sleep(0.2)

    return wait
