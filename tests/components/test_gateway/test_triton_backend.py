"""A ModelService's Triton replicas, run from their Deployment, behind the real Envoy: reached, replaced, added and drained."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from belvedere_operators.executors.deployment import deployment_executor
from belvedere_operators.executors.identity import find_instance
from belvedere_operators.executors.workload import Machine
from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.triton import triton_deployment
from belvedere_operators.runtime import Caches, ControlPlane, SystemClock
from belvedere_platform.artifacts import ArtifactKind, ArtifactStore
from belvedere_platform.resources import ModelService
from belvedere_platform.store import Manifest
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import DEPLOYMENT, ENDPOINT_SLICE
from belvedere_serving.gateway.world import World, gather_replicas, read_replicas
from triton_process import find_or_skip, triton_folder

pytestmark = pytest.mark.slow
VERSION = "tiny-v7"


@pytest.fixture
def deployment(tiny: ModuleType, tmp_path: Path) -> Manifest:
    """The Deployment that the controller would write, with one replica."""
    find_or_skip()
    artifacts = ArtifactStore((tmp_path / "artifacts").as_uri())
    files: dict[str, Path | bytes] = {path.name: path for path in tiny.write(tmp_path / "files").iterdir()}
    digest = artifacts.push(ArtifactKind.ENGINE, files, config={"modelDigest": "sha256:" + "0" * 64}).digest
    owner = {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "emoji", "namespace": "default", "uid": "u-1"},
        "spec": {"model": "tiny", "version": VERSION, "backend": "triton", "batching": {"waitMilliseconds": 0}},
    }
    environment = {
        "BELVEDERE_ARTIFACTS": artifacts.url,
        "BELVEDERE_CACHE": str(tmp_path / "cache"),
        "BELVEDERE_TRITON": triton_folder(),
    }
    manifest = triton_deployment(
        owner,
        ModelService.model_validate(owner).spec,
        version=VERSION,
        engine_digest=digest,
        replicas=1,
        pods=PodSettings(image="belvedere", environment=environment),
    )
    del manifest["metadata"]["ownerReferences"]
    return manifest


@contextlib.asynccontextmanager
async def machine(home: Path, gateway: Any, route: Any) -> AsyncIterator[EmbeddedStore]:
    """Run the executor of Deployments, and tell Envoy of each change of the slices, as the gateway's watcher does."""
    store, instance = EmbeddedStore(home / "store.sqlite"), f"test-{uuid.uuid4().hex[:8]}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = Machine(
        store=store,
        caches=Caches(store, clock=SystemClock()),
        clock=SystemClock(),
        home=home,
        instance=instance,
        environment={**os.environ, "PATH": path, "BELVEDERE_INSTANCE": instance},
    )
    plane = ControlPlane(given.caches, [deployment_executor(given)])

    async def follow() -> None:
        before = None
        while True:
            slices = (await store.list(ENDPOINT_SLICE, "default")).items
            replicas = gather_replicas(one for item in slices for one in read_replicas(item))
            if replicas != before:
                gateway.publish(World(routes={("default", "emoji"): route}, replicas=replicas))
                before = replicas
            await asyncio.sleep(0.05)

    tasks = [asyncio.create_task(plane.run()), asyncio.create_task(follow())]
    try:
        yield store
    finally:
        with contextlib.suppress(Exception):
            await store.delete(DEPLOYMENT, f"emoji-{VERSION}", "default")
        async with asyncio.timeout(60):
            while find_instance(instance):  # noqa: ASYNC110 - other processes, no event
                await asyncio.sleep(0.1)
        plane.stop()
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()


async def test_triton_replicas_serve_behind_the_gateway_and_come_and_go_unnoticed(
    gateway: Any, deployment: Manifest, route: Any, load: Any, until: Any, tmp_path: Path
) -> None:
    async with machine(tmp_path / "home", gateway, route({VERSION: 100})) as store:

        async def ready(number: int) -> bool:
            slices = (await store.list(ENDPOINT_SLICE, "default")).items
            return len(slices) == number and all(item["endpoints"][0]["conditions"]["ready"] for item in slices)

        async def scale(replicas: int) -> None:
            changed = {**deployment, "spec": {**deployment["spec"], "replicas": replicas}}
            await store.apply(changed, field_manager="test")
            await until(lambda: ready(replicas), f"{replicas} replicas", 180)

        await scale(1)
        await until(lambda: answers(gateway.address), "the gateway to reach Triton", 60)
        load.start()
        await load.more(40)
        await scale(2)
        await load.more(100)
        await scale(1)
        # The one that left has drained and ended before the load stops.
        await until(lambda: left(store, tmp_path / "home"), "the second replica to end", 60)
        await load.more(20)
        await load.stop()
        assert load.errors == {}
        assert {version for _, version in load.answers} == {"7"}


async def answers(address: str) -> bool:
    """Whether a request gets through."""
    import httpx

    async with httpx.AsyncClient(timeout=60) as client:
        try:
            found = await client.get(f"http://{address}/v2/models/embed_text/ready")
        except httpx.HTTPError:
            return False
        return found.status_code == 200 and found.headers["belvedere-version"] == VERSION


async def left(store: EmbeddedStore, home: Path) -> bool:
    """Whether nothing is kept of the second replica any more."""
    return not list((home / "processes").glob("*_1_*"))
