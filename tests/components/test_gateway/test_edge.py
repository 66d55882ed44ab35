"""A gateway whose line to the API server is cut: what is served goes on, and what was changed meanwhile is applied afterwards."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes import client, config

from belvedere_platform.store.kubernetes import KubernetesStore

from .traffic import Load
from .wire import Wire

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

MANAGER = "belvedere-test"


def own_address() -> str:
    """Return an address of this machine that an EndpointSlice may have: not a loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing; asks the routing table
            address = str(probe.getsockname()[0])
        except OSError:
            address = "127.0.0.1"
    if address.startswith("127."):
        pytest.skip("this machine has no address but the loopback one")
    return address


@pytest.fixture
async def namespace(kubeconfig: Path) -> AsyncIterator[str]:
    name = f"edge-{uuid.uuid4().hex[:8]}"
    with config.new_client_from_config(str(kubeconfig)) as api:
        namespaces = client.CoreV1Api(api)
        await asyncio.to_thread(namespaces.create_namespace, {"metadata": {"name": name}})
        yield name
        await asyncio.to_thread(namespaces.delete_namespace, name)


@pytest.fixture
def far(kubeconfig: Path) -> Any:
    """The kubeconfig of the API server, read."""
    return yaml.safe_load(kubeconfig.read_text())


@pytest.fixture
async def line(far: Any) -> AsyncIterator[Wire]:
    url = urlsplit(far["clusters"][0]["cluster"]["server"])
    made = Wire(url.port or 443, host=url.hostname or "")
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def near(far: Any, line: Wire, tmp_path: Path) -> Path:
    """A kubeconfig that goes over the line."""
    cluster = far["clusters"][0]["cluster"]
    cluster["tls-server-name"] = urlsplit(cluster["server"]).hostname
    cluster["server"] = f"https://127.0.0.1:{line.near_port}"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(far))
    return path


def labelled(kind: str, api: str, name: str, namespace: str, **labels: str) -> dict[str, Any]:
    marks = {"belvedere.dev/service": "emoji", "app.kubernetes.io/managed-by": "belvedere", **labels}
    return {"apiVersion": api, "kind": kind, "metadata": {"name": name, "namespace": namespace, "labels": marks}}


def endpoint_slice(server: Any, namespace: str) -> dict[str, Any]:
    name = f"emoji-{server.version}"
    head = labelled(
        "EndpointSlice", "discovery.k8s.io/v1", name, namespace, **{"belvedere.dev/version": server.version}
    )
    conditions = {"ready": True, "serving": True, "terminating": False}
    return {
        **head,
        "addressType": "IPv4",
        "ports": [
            {"name": "http", "port": server.http_port, "protocol": "TCP"},
            {"name": "grpc", "port": server.grpc_port, "protocol": "TCP"},
        ],
        "endpoints": [{"addresses": [server.address], "conditions": conditions}],
    }


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Any]:
    """Start verbs of `belvedere gateway`; they end with the test."""
    async with AsyncExitStack() as stack:

        async def one(*words: str) -> None:
            program = "from belvedere_platform.cli.main import main; main()"
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, "gateway", *words, env={**os.environ, "BELVEDERE_HOME": str(tmp_path)}
            )

            async def end() -> None:
                if process.returncode is None:
                    process.kill()
                await process.wait()

            stack.push_async_callback(end)

        yield one


async def test_what_is_served_goes_on_without_the_cloud_and_a_change_is_applied_after(
    kubeconfig: Path,
    namespace: str,
    line: Wire,
    near: Path,
    start: Any,
    servers: Any,
    route: Any,
    free_port: Any,
    until: Any,
    tmp_path: Path,
) -> None:
    cloud = KubernetesStore(kubeconfig=str(kubeconfig))
    versions = [await servers(version, address=own_address()) for version in ("v1", "v2")]

    async def weigh(**weights: int) -> None:
        text = route(weights, namespace=namespace).model_dump_json(by_alias=True)
        manifest = labelled("ConfigMap", "v1", "emoji-gateway", namespace)
        await cloud.apply({**manifest, "data": {"route.json": text}}, field_manager=MANAGER)

    await weigh(v1=100, v2=0)
    for server in versions:
        await cloud.apply(endpoint_slice(server, namespace), field_manager=MANAGER)
    ports = {name: free_port() for name in ("xds", "metrics", "tap", "gateway", "admin")}
    flags = {name: f"--{name}-port={port}" for name, port in ports.items()}
    over_the_line = ("--store", f"kubernetes://?kubeconfig={near}", "--watch-namespace", namespace)
    await start("serve", *over_the_line, flags["xds"], flags["metrics"], flags["tap"])
    await start("envoy", f"--output={tmp_path}/envoy.json", flags["xds"], flags["gateway"], flags["admin"])

    async def listens() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", ports["gateway"])
        except ConnectionRefusedError:
            return False
        writer.close()
        return True

    await until(listens, "Envoy to listen", 60)
    load = Load(address=f"127.0.0.1:{ports['gateway']}")
    load.start(2)

    async def answers_of_two() -> bool:
        return load.answers["ok", "v2"] > 0

    try:
        await load.more(20)
        await line.close()
        await weigh(v1=0, v2=100)
        await load.more(40)
        assert load.answers["ok", "v2"] == 0, "nobody could have told Envoy"
        began = asyncio.get_running_loop().time()
        await line.open()
        await until(answers_of_two, "the change to be applied", 60)
        print(f"applied {1000 * (asyncio.get_running_loop().time() - began):.0f} ms after the line was back")
    finally:
        await load.stop()
        await cloud.close()
    assert load.errors == {}
