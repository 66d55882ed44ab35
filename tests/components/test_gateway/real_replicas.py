"""A service on a real API server whose replicas are model servers that answer, behind a real gateway."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import RAY_SERVICE

from ...helm.actors import Actors
from ..test_operator_killed import Day
from .traffic import Load


class RealReplicas(Actors):
    """Whose dashboard names model servers that answer: as many of each application as are asked for."""

    def __init__(self, day: Day) -> None:
        super().__init__(day.store, day.namespace, day.artifacts)
        self._day = day
        self.servers: dict[str, Sequence[Any]] = {}
        """By application."""

    async def serve_details(self, request: web.Request) -> web.Response:
        """Answer as Ray's dashboard."""
        applications, groups = {}, []
        for one in (await self._day.store.list(RAY_SERVICE, self._day.namespace)).items:
            name = one["metadata"]["name"]
            actors = {f"SERVE_REPLICA::{name}-{n}": server for n, server in enumerate(self._asked_for(one))}
            replicas = [
                {"replica_id": actor, "actor_name": actor, "state": "RUNNING", "node_ip": server.address}
                for actor, server in actors.items()
            ]
            applications[name] = {
                "route_prefix": "/",
                "deployments": {"V2Server": {"name": "V2Server", "replicas": replicas}},
            }
            for protocol, port in (("HTTP", "http_port"), ("gRPC", "grpc_port")):
                targets = [
                    {"ip": server.address, "port": getattr(server, port), "name": actor, "instance_id": ""}
                    for actor, server in actors.items()
                ]
                groups.append({"protocol": protocol, "route_prefix": "/", "app_name": name, "targets": targets})
        return web.json_response({"applications": applications, "target_groups": groups})

    def _asked_for(self, service: Manifest) -> Sequence[Any]:
        (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        return self.servers.get(service["metadata"]["name"], ())[: group["replicas"]]


@asynccontextmanager
async def a_day(kubeconfig: Path, namespace: str, folder: Path) -> AsyncIterator[Day]:
    """Play those who act on the operator's children, for the time of a with block."""
    made = Day(kubeconfig, namespace, folder)
    made.actors = RealReplicas(made)
    async with made.actors.dashboard():
        acting = asyncio.create_task(made.actors.run())
        try:
            yield made
        finally:
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
        await made.store.close()


async def end(process: asyncio.subprocess.Process) -> None:
    """End a program as a kubelet does."""
    process.send_signal(signal.SIGTERM)
    await process.wait()


async def answers(port: int, version: str = "v1") -> bool:
    """Return whether requests through the gateway come back with answers, one of this version at least."""
    trial = Load(address=f"127.0.0.1:{port}")
    trial.start(2)
    try:
        await trial.more(2)
    finally:
        await trial.stop()
    return not trial.errors and trial.answers["ok", version] > 0
