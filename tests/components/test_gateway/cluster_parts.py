"""What the gateway's tests on a real API server share: programs that end with the test, and objects."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from ..older import BELVEDERE, environment_of

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
    """Start verbs of `belvedere gateway`, of this state or of an older one; they end with the test."""
    async with AsyncExitStack() as stack:

        async def one(*words: str, tree: Path | None = None) -> asyncio.subprocess.Process:
            environment = {**environment_of(tree), "BELVEDERE_HOME": str(tmp_path)}
            process = await asyncio.create_subprocess_exec(*BELVEDERE, "gateway", *words, env=environment)

            async def end() -> None:
                if process.returncode is None:
                    process.kill()
                await process.wait()

            stack.push_async_callback(end)
            return process

        yield one
