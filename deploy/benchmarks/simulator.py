"""Stands in for KubeRay where pods run nothing: makes the pods of RayJobs and RayServices, and tells what would become of them.

usage: simulator.py KUBECONFIG NAMESPACE PORT

A RayJob runs when its pods are ready, and has succeeded a moment later. A RayService's head has a dashboard at an address of
its own (127.x.y.z, all on PORT) that names one replica for each worker pod that is ready. Prometheus is played as well: it
says of every service that the gateway routes to the version asked for, and knows nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import zlib
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import uvloop
from aiohttp import web

from belvedere_platform.errors import BelvedereError, Conflict, NotFound
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.kinds import RAY_JOB, RAY_SERVICE
from belvedere_platform.store.kubernetes import KubernetesStore
from belvedere_platform.store.kubernetes_transport import Transport

POD = Kind(api_version="v1", kind="Pod", plural="pods")
OWNER = "simulator/owner"
MANAGER = "simulator"
NUM_NODES = 20
WORKERS = 16
TRAINING_SECONDS = 1.0
_VERSION = re.compile(r'service="([^"]+)"')
Key = tuple[str, str]
Kinds = {"RayJob": RAY_JOB, "RayService": RAY_SERVICE}


def moment() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Addresses:
    """Gives each name an address of its own, in the order in which they come.

    A hash of the name would do for a thousand; of five thousand two shared one, and their services never became ready together.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def of(self, name: str, network: int) -> str:
        """Return an address: of the head's dashboard in network 127, where it is played; of a replica in 10, where nothing is."""
        number = self._numbers.setdefault(name, len(self._numbers))
        return f"{network}.{1 + number % 250}.{number // 250 % 250}.{1 + number // 62_500 % 250}"


def pods_of(manifest: Manifest) -> list[Manifest]:
    """Return the pods that KubeRay would make: a head, and every worker."""
    metadata, spec = manifest["metadata"], manifest["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    groups = [(1, "head", cluster["headGroupSpec"]["template"])]
    groups += [(group["replicas"], "worker", group["template"]) for group in cluster["workerGroupSpecs"]]
    return [
        _pod(manifest, f"{metadata['name']}-{role}-{index}", role, template)
        for count, role, template in groups
        for index in range(count)
    ]


def _pod(manifest: Manifest, name: str, role: str, template: Manifest) -> Manifest:
    metadata = manifest["metadata"]
    labels = {**template["metadata"].get("labels", {}), "simulator/role": role}
    reference = {key: manifest[key] for key in ("apiVersion", "kind")}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": {OWNER: f"{manifest['kind']}/{metadata['name']}"},
            "ownerReferences": [{**reference, "name": metadata["name"], "uid": metadata["uid"]}],
        },
        "spec": {**template["spec"], "nodeName": f"fake-{zlib.crc32(name.encode()) % NUM_NODES}"},
    }


class Simulator:
    """Keeps the objects that it knows, and handles each as often as it or one of its pods changes."""

    def __init__(self, kubeconfig: str, namespace: str, port: int) -> None:
        self._store = KubernetesStore(kubeconfig=kubeconfig)
        self._transport = Transport(kubeconfig=kubeconfig, context=None, environment=os.environ)
        self._namespace = namespace
        self._port = port
        self._objects: dict[Key, Manifest] = {}
        self._ready: dict[Key, set[str]] = {}
        self._made: set[str] = set()
        self._told: dict[Key, Any] = {}
        self._queue: asyncio.Queue[Key] = asyncio.Queue()
        self._queued: set[Key] = set()
        self._by_address: dict[str, Key] = {}
        self._addresses = Addresses()
        self._versions: dict[str, set[str]] = {}

    async def run(self) -> None:
        """Play until cancelled."""
        await self._serve()
        async with asyncio.TaskGroup() as group:
            for kind in (RAY_JOB, RAY_SERVICE, POD):
                group.create_task(self._follow(kind))
            for _ in range(WORKERS):
                group.create_task(self._work())

    async def _follow(self, kind: Kind) -> None:
        listing = await self._store.list(kind, self._namespace)
        for item in listing.items:
            self._see(kind, item, gone=False)
        version = listing.resource_version
        async with aclosing(self._store.watch(kind, self._namespace, resource_version=version)) as events:  # type: ignore[type-var]
            async for event in events:
                if event.type != "BOOKMARK":
                    self._see(kind, event.object, gone=event.type == "DELETED")

    def _see(self, kind: Kind, manifest: Manifest, *, gone: bool) -> None:
        name = manifest["metadata"]["name"]
        if kind is POD:
            owner = manifest["metadata"].get("annotations", {}).get(OWNER, "")
            key = (owner.partition("/")[0], owner.partition("/")[2])
            conditions = manifest.get("status", {}).get("conditions", ())
            if any(one["type"] == "Ready" and one["status"] == "True" for one in conditions) and not gone:
                self._ready.setdefault(key, set()).add(name)
            else:
                self._ready.get(key, set()).discard(name)
        else:
            key = (kind.kind, name)
            if gone:
                self._objects.pop(key, None)
                return
            self._objects[key] = manifest
            if kind is RAY_SERVICE:
                labels = manifest["metadata"]["labels"]
                self._versions.setdefault(labels["belvedere.dev/service"], set()).add(labels["belvedere.dev/version"])
        self._add(key)

    def _add(self, key: Key) -> None:
        if key not in self._queued:
            self._queued.add(key)
            self._queue.put_nowait(key)

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            self._queued.discard(key)
            manifest = self._objects.get(key)
            if manifest is None:
                continue
            try:
                await self._handle(key, manifest)
            except (Conflict, NotFound):
                self._add(key)
            except BelvedereError as error:
                print(f"simulator: {key}: {error}", file=sys.stderr, flush=True)
                await asyncio.sleep(1)
                self._add(key)

    async def _handle(self, key: Key, manifest: Manifest) -> None:
        if manifest["spec"].get("suspend"):
            await self._tell(key, {"jobDeploymentStatus": "Suspended"})
            return
        wanted = pods_of(manifest)
        for pod in wanted:
            name = pod["metadata"]["name"]
            if name not in self._made:
                self._made.add(name)
                await self._transport.request("POST", f"/api/v1/namespaces/{self._namespace}/pods", body=pod)
        ready = self._ready.get(key, set())
        if not all(pod["metadata"]["name"] in ready for pod in wanted):
            return
        await (self._job(key) if key[0] == "RayJob" else self._service(key))

    async def _job(self, key: Key) -> None:
        if key in self._told:
            return
        began = moment()
        running = {"jobId": key[1], "jobStatus": "RUNNING", "jobDeploymentStatus": "Running", "startTime": began}
        await self._tell(key, running)
        await asyncio.sleep(TRAINING_SECONDS)
        ended = {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete", "endTime": moment()}
        await self._tell(key, running | ended)

    async def _service(self, key: Key) -> None:
        address = self._addresses.of(key[1], 127)
        self._by_address[address] = key
        cluster = {"head": {"serviceIP": address}, "endpoints": {"dashboard": str(self._port)}}
        active = {"applicationStatuses": {key[1]: {"status": "RUNNING"}}, "rayClusterStatus": cluster}
        await self._tell(key, {"serviceStatus": "Running", "activeServiceStatus": active})

    async def _tell(self, key: Key, status: Mapping[str, Any]) -> None:
        if self._told.get(key) == status:
            return
        self._told[key] = status
        kind = Kinds[key[0]]
        metadata = {"name": key[1], "namespace": self._namespace}
        body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": dict(status)}
        await self._store.apply_status(body, field_manager=MANAGER)

    async def _serve(self) -> None:
        application = web.Application()
        application.router.add_get("/api/serve/applications/", self._dashboard)
        application.router.add_route("*", "/api/v1/query", self._prometheus)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", self._port).start()

    async def _dashboard(self, request: web.Request) -> web.Response:
        key = self._by_address.get(request.host.partition(":")[0])
        if key is None:
            return web.json_response({"applications": {}})
        return web.json_response(self._details(key))

    def _details(self, key: Key) -> dict[str, Any]:
        name = key[1]
        workers = sorted(pod for pod in self._ready.get(key, ()) if "-worker-" in pod)
        replicas = [
            {"replica_id": pod, "actor_name": pod, "state": "RUNNING", "node_ip": self._addresses.of(pod, 10)}
            for pod in workers
        ]
        targets = [{"name": pod, "ip": self._addresses.of(pod, 10), "port": 30000} for pod in workers]
        deployment = {"name": "V2Server", "replicas": replicas}
        return {
            "applications": {name: {"deployments": {"V2Server": deployment}, "route_prefix": "/"}},
            "target_groups": [{"app_name": name, "protocol": "HTTP", "route_prefix": "/", "targets": targets}],
        }

    async def _prometheus(self, request: web.Request) -> web.Response:
        given = await request.post() if request.method == "POST" else request.query
        query = str(given.get("query", ""))
        return web.json_response({"status": "success", "data": {"result": self._answer(query)}})

    def _answer(self, query: str) -> list[dict[str, Any]]:
        service = _VERSION.search(query)
        if "effective_weight" not in query or service is None:
            return []
        versions = sorted(self._versions.get(service.group(1), ()))
        labels = {"belvedere_question": "effective_weight", "protocol": "grpc"}
        return [{"metric": {**labels, "version": version}, "value": [0, "100"]} for version in versions]


def main() -> None:
    """Play until told to end."""
    kubeconfig, namespace, port = sys.argv[1:]
    print(json.dumps({"simulator": os.getpid()}), flush=True)
    uvloop.run(Simulator(kubeconfig, namespace, int(port)).run())


if __name__ == "__main__":
    main()
