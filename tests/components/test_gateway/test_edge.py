"""A gateway whose line to the API server is cut: what is served goes on, and what was changed meanwhile is applied afterwards."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from belvedere_platform.store.kubernetes import KubernetesStore

from .cluster_parts import MANAGER, endpoint_slice, labelled, own_address
from .traffic import Load
from .wire import Wire, over, wire_to

NUM_CHANGES = int(os.environ.get("BELVEDERE_BENCH_CHANGES", 0))
"""How many more times the weights are turned there and back: the benchmark asks for some."""

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


@pytest.fixture
async def line(kubeconfig: Path) -> AsyncIterator[Wire]:
    made = wire_to(kubeconfig)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def near(kubeconfig: Path, line: Wire, tmp_path: Path) -> Path:
    """A kubeconfig that goes over the line."""
    return over(line, kubeconfig, tmp_path / "kubeconfig")


class Edge:
    """A gateway at the edge, two versions behind it, and clients; the cloud says who gets how much."""

    def __init__(self, cloud: KubernetesStore, namespace: str, port: int, route: Any, until: Any) -> None:
        self.load = Load(address=f"127.0.0.1:{port}")
        self._cloud, self._namespace, self._port, self._route, self._until = cloud, namespace, port, route, until

    async def weigh(self, **weights: int) -> None:
        """Ask for other weights."""
        text = self._route(weights, namespace=self._namespace).model_dump_json(by_alias=True)
        manifest = labelled("ConfigMap", "v1", "emoji-gateway", self._namespace)
        await self._cloud.apply({**manifest, "data": {"route.json": text}}, field_manager=MANAGER)

    async def seconds_to_traffic(self, **weights: int) -> float:
        """Return how long after a change it shows in what clients get."""
        (version,) = [name for name, weight in weights.items() if weight]
        before, began = self.load.answers["ok", version], asyncio.get_running_loop().time()

        async def shows() -> bool:
            return self.load.answers["ok", version] > before

        await self.weigh(**weights)
        await self._until(shows, f"answers of {version}", 60)
        took = asyncio.get_running_loop().time() - began
        # The other version's last answers are on their way.
        await self.load.only(version)
        return took

    async def answers_of_two(self) -> bool:
        """Return whether the second version has answered since the count was set back."""
        return self.load.answers["ok", "v2"] > 0

    async def listens(self) -> bool:
        """Return whether Envoy takes connections."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True


@pytest.fixture
async def edge(
    kubeconfig: Path,
    namespace: str,
    near: Path,
    start: Any,
    servers: Any,
    route: Any,
    free_port: Any,
    until: Any,
    tmp_path: Path,
) -> AsyncIterator[Edge]:
    """An edge under load, whose gateway reaches the cloud over the line."""
    cloud = KubernetesStore(kubeconfig=str(kubeconfig))
    ports = {name: free_port() for name in ("xds", "metrics", "tap", "gateway", "admin")}
    made = Edge(cloud, namespace, ports["gateway"], route, until)
    await made.weigh(v1=100, v2=0)
    for version in ("v1", "v2"):
        server = await servers(version, address=own_address())
        await cloud.apply(endpoint_slice(server, namespace), field_manager=MANAGER)
    flags = {name: f"--{name}-port={port}" for name, port in ports.items()}
    over_the_line = ("--store", f"kubernetes://?kubeconfig={near}", "--watch-namespace", namespace)
    await start("serve", *over_the_line, flags["xds"], flags["metrics"], flags["tap"])
    await start("envoy", f"--output={tmp_path}/envoy.json", flags["xds"], flags["gateway"], flags["admin"])
    await until(made.listens, "Envoy to listen", 60)
    made.load.start(2)
    yield made
    await made.load.stop()
    await cloud.close()


async def test_what_is_served_goes_on_without_the_cloud_and_a_change_is_applied_after(
    line: Wire, edge: Edge, until: Any, record_property: Any
) -> None:
    load = edge.load
    await load.more(20)
    changes = []
    for _ in range(1 + NUM_CHANGES):
        changes += [await edge.seconds_to_traffic(v1=0, v2=100), await edge.seconds_to_traffic(v1=100, v2=0)]
    load.answers["ok", "v2"] = 0
    await line.close()
    await edge.weigh(v1=0, v2=100)
    await load.more(40)
    assert load.answers["ok", "v2"] == 0, "nobody could have told Envoy"
    began = asyncio.get_running_loop().time()
    await line.open()
    await until(edge.answers_of_two, "the change to be applied", 60)
    record_property("edge_reconnect_sync_ms", 1000 * (asyncio.get_running_loop().time() - began))
    slowest = sorted(changes)[math.ceil(0.95 * len(changes)) - 1]
    record_property("config_change_to_traffic_p95_ms", 1000 * slowest)
    await load.stop()
    assert load.errors == {}
