"""Operator and gateway are replaced by their next version while clients ask: no model's pods start anew, and no request fails."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENDPOINT_SLICE, MODEL_SERVICE, RAY_SERVICE, TRAINING_RUN

from ...helm.actors import Actors
from ..test_operator_killed import RUN, SERVICE, Day, eventually
from .cluster_parts import own_address
from .traffic import Load

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SERVED: Manifest = {
    **SERVICE,
    "routing": {"default": True},
    # What is replaced stays warm, as it does outside of tests: routes and addresses reach a gateway by two watches.
    "rollout": {**SERVICE["rollout"], "keepStableSeconds": 60},
}


class RealReplicas(Actors):
    """Whose dashboard names model servers that answer."""

    def __init__(self, day: Day) -> None:
        super().__init__(day.store, day.namespace, day.artifacts)
        self.servers: dict[str, Any] = {}

    async def serve_details(self, request: web.Request) -> web.Response:
        applications, groups = {}, []
        for name, server in self.servers.items():
            actor = f"SERVE_REPLICA::{name}"
            replica = {"replica_id": name, "actor_name": actor, "state": "RUNNING", "node_ip": server.address}
            applications[name] = {
                "route_prefix": "/",
                "deployments": {"V2Server": {"name": "V2Server", "replicas": [replica]}},
            }
            for protocol, port in (("HTTP", server.http_port), ("gRPC", server.grpc_port)):
                target = {"ip": server.address, "port": port, "name": actor, "instance_id": ""}
                groups.append({"protocol": protocol, "route_prefix": "/", "app_name": name, "targets": [target]})
        return web.json_response({"applications": applications, "target_groups": groups})


@pytest.fixture
async def day(kubeconfig: Path, namespace: str, tmp_path: Path) -> AsyncIterator[Day]:
    made = Day(kubeconfig, namespace, tmp_path)
    made.actors = RealReplicas(made)
    app = web.Application()
    app.router.add_get("/api/serve/applications/", made.actors.serve_details)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.actors.dashboard_port = runner.addresses[0][1]
    acting = asyncio.create_task(made.actors.run())
    yield made
    acting.cancel()
    await asyncio.gather(acting, return_exceptions=True)
    await runner.cleanup()
    await made.store.close()


async def end(process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGTERM)
    await process.wait()


async def standing(day: Day) -> dict[str, Any]:
    """Return what a restarted pod would change: each server's generation, and each replica's address by its own identity."""
    services = (await day.store.list(RAY_SERVICE, day.namespace)).items
    slices = (await day.store.list(ENDPOINT_SLICE, day.namespace)).items
    return {
        **{one["metadata"]["uid"]: one["metadata"]["generation"] for one in services},
        **{one["metadata"]["uid"]: one["endpoints"][0]["addresses"] for one in slices},
    }


async def test_an_upgrade_restarts_no_model_and_loses_no_request(
    day: Day, start: Any, servers: Any, free_port: Any, tmp_path: Path, record_property: Any
) -> None:
    replicas = {version: await servers(version, address=own_address()) for version in ("v1", "v2")}
    assert isinstance(day.actors, RealReplicas)
    day.actors.servers = {f"emoji-{version}": server for version, server in replicas.items()}
    ports = {name: free_port() for name in ("xds", "metrics", "tap", "gateway", "admin")}
    flags = {name: f"--{name}-port={port}" for name, port in ports.items()}
    words = ("serve", "--store", f"kubernetes://?kubeconfig={day.kubeconfig}", "--watch-namespace", day.namespace)
    serve = partial(start, *words, flags["xds"], flags["metrics"], flags["tap"], f"--memory={tmp_path}/memory.json")
    operator, gateway = await day.start(None, "--image=belvedere:1"), await serve()
    load = Load(address=f"127.0.0.1:{ports['gateway']}")
    try:
        await start("envoy", f"--output={tmp_path}/envoy.json", flags["xds"], flags["gateway"], flags["admin"])
        day.artifacts.push("dataset", {"manifest.json": b"{}"}, config={}, tag="datasets/emoji")
        await day.apply(TRAINING_RUN, "v1", RUN)
        await day.apply(MODEL_SERVICE, "emoji", {**SERVED, "version": "v1"})
        await eventually(lambda: day.stable_is("v1"), "the first version to serve")
        await eventually(partial(answers, ports["gateway"]), "the gateway to answer")
        load.start(2)
        await load.more(20)
        before = await standing(day)
        assert len(before) == 2

        await end(operator)
        (tmp_path / "pods.yaml").write_text("all: {labels: {release: next}}")
        operator = await day.start(None, "--image=belvedere:2", f"--pod-defaults={tmp_path}/pods.yaml")
        await load.more(20)
        await end(gateway)
        await load.more(20)
        gateway = await serve()
        await load.more(20)
        after = await standing(day)

        # The new operator does all that the old one did, and a gateway that was away meanwhile follows.
        await day.apply(TRAINING_RUN, "v2", RUN)
        wish = {
            "annotations": {
                "belvedere.dev/rollout-request": json.dumps({"verb": "promote", "candidate": "v2", "id": "1"})
            }
        }
        await end(gateway)
        await day.apply(MODEL_SERVICE, "emoji", {**SERVED, "version": "v2"}, **wish)
        await eventually(lambda: day.stable_is("v2"), "the second version to be promoted")
        await serve()
        await eventually(partial(answers, ports["gateway"], "v2"), "the second version to answer")
        await load.more(20)
    finally:
        await load.stop()
        await end(operator)
    record_property("upgrade_pods_restarted", len(before.items() ^ after.items()))
    record_property("upgrade_failed_requests", sum(load.errors.values()))
    assert after == before
    assert load.errors == {}


async def answers(port: int, version: str = "v1") -> bool:
    """Return whether requests through the gateway come back with answers, one of this version at least."""
    trial = Load(address=f"127.0.0.1:{port}")
    trial.start(2)
    try:
        await trial.more(2)
    finally:
        await trial.stop()
    return not trial.errors and trial.answers["ok", version] > 0
