"""Those who act on the operator's children in a cluster, played, because no pod runs here: KubeRay, the Job controller, Ray's dashboard."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from aiohttp import web

from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.errors import NotFound
from belvedere_platform.store import Kind, Manifest, ObjectStore
from belvedere_platform.store.kinds import JOB, RAY_JOB, RAY_SERVICE

GOOD = {"cosineMin": 0.99, "cosineMean": 0.99, "top1Agreement": 1.0, "samples": 256}
FAST = {"p50Milliseconds": 2.0, "p95Milliseconds": 3.0, "torchP50Milliseconds": 6.0, "batch": 1}


class Actors:
    """Give each child the status that it would come to."""

    def __init__(self, store: ObjectStore, namespace: str, artifacts: ArtifactStore) -> None:
        self._store, self._namespace, self._artifacts = store, namespace, artifacts
        self.dashboard_port = 0
        self.generation = "a"
        self._applications: set[str] = set()

    @contextlib.asynccontextmanager
    async def dashboard(self) -> AsyncIterator[None]:
        """Answer as Ray's dashboard, on a port of its own, for the time of a with block."""
        app = web.Application()
        app.router.add_get("/api/serve/applications/", self.serve_details)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.dashboard_port = runner.addresses[0][1]
        try:
            yield
        finally:
            await runner.cleanup()

    async def run(self) -> None:
        while True:
            for kind, act in ((RAY_JOB, self._ray_job), (JOB, self._job), (RAY_SERVICE, self._ray_service)):
                for one in (await self._store.list(kind, self._namespace)).items:
                    if not (one.get("status") or {}).get("acted") and "deletionTimestamp" not in one["metadata"]:
                        with contextlib.suppress(NotFound):  # it went meanwhile
                            await act(one)
            await asyncio.sleep(0.2)

    async def _status(self, kind: Kind, one: Manifest, status: Manifest) -> None:
        metadata = {"name": one["metadata"]["name"], "namespace": self._namespace}
        manifest = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata, "status": status}
        await self._store.apply_status(manifest, field_manager="actors")

    async def _ray_job(self, one: Manifest) -> None:
        if (one.get("status") or {}).get("jobStatus") or one["spec"].get("suspend"):
            return
        config = {"model": "clip", "metrics": {}, "lineage": {"configDigest": "sha256:" + "c" * 64}}
        tag = f"runs/{self._namespace}/{one['metadata']['ownerReferences'][0]['name']}/1"
        self._artifacts.push("model", {"model.safetensors": b"w"}, config=config, tag=tag)
        await self._status(RAY_JOB, one, {"jobStatus": "SUCCEEDED", "jobDeploymentStatus": "Complete"})

    async def _job(self, one: Manifest) -> None:
        if (one.get("status") or {}).get("conditions"):
            return
        words = one["spec"]["template"]["spec"]["containers"][0]["args"]
        told = dict(zip(words[2::2], words[3::2], strict=True))
        config = {
            "modelDigest": told["--model-digest"],
            "target": {"runtime": told["--runtime"], "precision": told["--precision"], "device": "cpu"},
            "parity": {"embed_text": GOOD, "embed_image": GOOD},
            "latency": {"embed_text": FAST, "embed_image": FAST},
            "toolchain": {"onnxruntime": "1.0"},
            "device": "cpu",
        }
        self._artifacts.push("engine", {"embed_text.onnx": b"x"}, config=config, tag=told["--tag"])
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        done = [
            {"type": type_, "status": "True", "lastTransitionTime": now, "lastProbeTime": now}
            for type_ in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"startTime": now, "completionTime": now, "succeeded": 1, "conditions": done}
        await self._status(JOB, one, {**status, "uncountedTerminatedPods": {}})

    async def _ray_service(self, one: Manifest) -> None:
        name = one["metadata"]["name"]
        self._applications.add(name)
        if (one.get("status") or {}).get("activeServiceStatus"):
            return
        head = {"head": {"serviceIP": "127.0.0.1"}, "endpoints": {"dashboard": str(self.dashboard_port)}}
        active = {"applicationStatuses": {name: {"status": "RUNNING"}}, "rayClusterStatus": head}
        await self._status(RAY_SERVICE, one, {"serviceStatus": "Running", "activeServiceStatus": active})

    async def serve_details(self, request: web.Request) -> web.Response:
        """Answer as Ray's dashboard: one replica of each application, another when the generation changes."""
        applications, groups = {}, []
        for name in self._applications:
            actor = f"SERVE_REPLICA::{name}-{self.generation}"
            replica = {"replica_id": self.generation, "actor_name": actor, "state": "RUNNING", "node_ip": "10.9.9.9"}
            deployment = {"name": "V2Server", "replicas": [replica]}
            applications[name] = {"route_prefix": "/", "deployments": {"V2Server": deployment}}
            for protocol, port in (("HTTP", 30000), ("gRPC", 40000)):
                target = {"ip": "10.9.9.9", "port": port, "name": actor, "instance_id": ""}
                groups.append({"protocol": protocol, "route_prefix": "/", "app_name": name, "targets": [target]})
        return web.json_response({"applications": applications, "target_groups": groups})
