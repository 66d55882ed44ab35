"""Pods that ask for ports of their own get them, keep them, and are published as EndpointSlices."""

from __future__ import annotations

import asyncio
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belvedere_operators.executors.deployment import deployment_executor
from belvedere_operators.executors.ports import pod_ports
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import DEPLOYMENT, ENDPOINT_SLICE

if TYPE_CHECKING:
    from .conftest import World

SERVER = "exec {python} -m http.server --bind $BELVEDERE_ADDRESS $BELVEDERE_PORT_HTTP"
TEMPLATE: dict[str, Any] = {
    "metadata": {
        "labels": {"belvedere.dev/service": "search", "belvedere.dev/version": "v1"},
        "annotations": {"belvedere.dev/own-ports": "true"},
    },
    "spec": {
        "terminationGracePeriodSeconds": 2,
        "containers": [
            {
                "name": "main",
                "image": "ignored",
                "command": ["sh", "-c", SERVER.format(python=sys.executable)],
                "env": [{"name": "BELVEDERE_PORT_HTTP", "value": "8000"}],
                "ports": [{"name": "http", "containerPort": 8000}],
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
            }
        ],
    },
}


def deployment(replicas: int) -> Manifest:
    metadata = {"name": "search-v1", "namespace": "default"}
    spec = {"replicas": replicas, "template": TEMPLATE}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def is_ready(slice_: Manifest) -> bool:
    return bool(slice_["endpoints"][0]["conditions"]["ready"])


def port_of(slice_: Manifest) -> int:
    return int(slice_["ports"][0]["port"])


def status_of(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
        return int(answer.status)


async def test_replicas_have_ports_of_their_own_and_are_published(world: World) -> None:
    async with world.control_plane(deployment_executor):
        await world.apply(deployment(2))
        slices = [await world.until(ENDPOINT_SLICE, f"search-v1-{number}", is_ready) for number in (0, 1)]
        assert len({port_of(one) for one in slices}) == 2
        assert slices[0]["metadata"]["labels"]["belvedere.dev/version"] == "v1"
        assert await asyncio.to_thread(status_of, port_of(slices[1])) == 200
        await world.apply(deployment(1))
        await world.grown_to(2)
        left = (await world.store.list(ENDPOINT_SLICE, "default")).items
        assert [one["metadata"]["name"] for one in left] == ["search-v1-0"]
    before = world.running()
    async with world.control_plane(deployment_executor):
        again = await world.until(ENDPOINT_SLICE, "search-v1-0", is_ready)
        assert port_of(again) == port_of(slices[0])
        assert world.running() == before
        await world.store.delete(DEPLOYMENT, "search-v1", "default")
        await world.gone(before)
        assert not (await world.store.list(ENDPOINT_SLICE, "default")).items


def test_a_port_that_was_taken_meanwhile_is_given_up(tmp_path: Path) -> None:
    import socket

    first = pod_ports(TEMPLATE, tmp_path, running=False)
    assert pod_ports(TEMPLATE, tmp_path, running=False) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first["http"]))
        taken.listen()
        assert pod_ports(TEMPLATE, tmp_path, running=True) == first
        assert pod_ports(TEMPLATE, tmp_path, running=False) != first


def test_other_pods_share_the_ports_they_name(tmp_path: Path) -> None:
    template = {**TEMPLATE, "metadata": {}}
    assert pod_ports(template, tmp_path, running=False) == {}
