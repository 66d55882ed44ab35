"""Kueue as it comes, beside a control plane that has no pods: its controller runs as a process of this machine.

The API server reaches its webhooks by a Service of the type ExternalName, so that Kueue goes on making their certificates
itself. What a kubelet would do, to put those into a folder, is done here.
"""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from belvedere_platform.errors import Conflict, NotFound, NotInstalled
from belvedere_platform.ports import free_ports
from belvedere_platform.store.kubernetes_transport import Transport

SYSTEM, SERVICE, SECRET = "kueue-system", "kueue-webhook-service", "kueue-webhook-server-cert"
QUEUES = "/apis/kueue.x-k8s.io/v1beta2"
PATIENCE_SECONDS = 120.0
# What is not asked for is left out: without pods and Deployments their webhooks would only have to be answered.
ADMITTED = ("kueue.x-k8s.io", "ray.io")
CONVERTED = ("localqueues", "clusterqueues", "cohorts", "workloads", "multikueueclusters")


async def eventually(holds: Callable[[], Coroutine[Any, Any, bool]], what: str) -> None:
    """Return when it does. Raises TimeoutError with what was waited for."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await holds():  # noqa: ASYNC110 - another process says so, when asked
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s for {what}") from error


class Kueue:
    """What Kueue brings to a cluster, and its controller."""

    def __init__(self, built: Path, kubeconfig: Path, folder: Path) -> None:
        self._built, self._kubeconfig, self._folder = built, kubeconfig, folder
        self._transport = Transport(kubeconfig=str(kubeconfig), context=None, environment={})
        self._port, self._health = free_ports(2)
        self._certificates = folder / "certificates"
        self._certificates.mkdir()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it for the time of a with block."""
        mounting = asyncio.create_task(self._mount())
        try:
            await self._install()
            with self._process() as process:
                await self._wait_ready(process)
                yield
        finally:
            mounting.cancel()
            await asyncio.gather(mounting, return_exceptions=True)
            await self._transport.close()

    async def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:

            async def ready() -> bool:
                assert process.poll() is None, (self._folder / "kueue.log").read_text()[-2000:]
                with suppress(httpx.HTTPError):
                    return (await http.get(f"http://127.0.0.1:{self._health}/readyz")).is_success
                return False

            await eventually(ready, "Kueue to be ready")

    async def create(self, path: str, body: dict[str, Any]) -> None:
        """Make an object."""
        await self._transport.request("POST", path, body=body)

    async def merge(self, path: str, body: dict[str, Any]) -> None:
        """Change some fields of an object."""
        await self._transport.request("PATCH", path, body=body, content_type="application/merge-patch+json")

    async def admitted(self, namespace: str) -> dict[str, bool]:
        """Return by RayJob whether its workload is admitted."""
        workloads = await self._transport.request("GET", f"{QUEUES}/namespaces/{namespace}/workloads")
        return {
            one["metadata"]["ownerReferences"][0]["name"]: any(
                said["type"] == "Admitted" and said["status"] == "True"
                for said in (one.get("status") or {}).get("conditions", ())
            )
            for one in workloads["items"]
        }

    async def _install(self) -> None:
        system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}}
        await self.create("/api/v1/namespaces", system)
        service = {"spec": {"type": "ExternalName", "externalName": "localhost"}, "metadata": {"name": SERVICE}}
        await self.create(f"/api/v1/namespaces/{SYSTEM}/services", service)
        await self.create(f"/api/v1/namespaces/{SYSTEM}/secrets", {"metadata": {"name": SECRET}})
        for definition in self._definitions():
            await self.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        for configuration in self._webhooks():
            plural = configuration["kind"].lower() + "s"
            await self.create(f"/apis/admissionregistration.k8s.io/v1/{plural}", configuration)

    def _definitions(self) -> Iterator[dict[str, Any]]:
        for file in sorted((self._built / "definitions").glob("*.yaml")):
            definition = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)
            for version in definition["spec"]["versions"]:
                _leave_out_pods(version["schema"]["openAPIV3Schema"])
            if definition["spec"]["names"]["plural"] in CONVERTED:
                client = {"service": self._service("/convert")}
                webhook = {"clientConfig": client, "conversionReviewVersions": ["v1"]}
                definition["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
            yield definition

    def _webhooks(self) -> Iterator[dict[str, Any]]:
        for configuration in yaml.load_all((self._built / "webhooks.yaml").read_text(), Loader=yaml.CSafeLoader):
            name = "kueue-" + configuration["metadata"]["name"]
            asked = [one for one in configuration["webhooks"] if one["rules"][0]["apiGroups"][0] in ADMITTED]
            for one in asked:
                one["clientConfig"] = {"service": self._service(one["clientConfig"]["service"]["path"])}
            yield {**configuration, "metadata": {"name": name}, "webhooks": asked}

    def _service(self, path: str) -> dict[str, Any]:
        return {"namespace": SYSTEM, "name": SERVICE, "path": path, "port": self._port}

    @contextmanager
    def _process(self) -> Iterator[subprocess.Popen[bytes]]:
        settings = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": SYSTEM,
            "health": {"healthProbeBindAddress": f"127.0.0.1:{self._health}"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": self._port, "certDir": str(self._certificates)},
            "leaderElection": {"leaderElect": False},
            "integrations": {"frameworks": ["ray.io/rayjob", "ray.io/raycluster"]},
        }
        config = self._folder / "kueue.yaml"
        config.write_text(yaml.safe_dump(settings))
        words = [str(self._built / "kueue"), f"--config={config}", "--feature-gates=VisibilityOnDemand=false"]
        with (self._folder / "kueue.log").open("wb") as log:
            environment = {**os.environ, "KUBECONFIG": str(self._kubeconfig)}
            process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    async def _mount(self) -> None:
        """Do what a kubelet does with a Secret that a pod mounts."""
        while True:
            with suppress(NotFound):
                secret = await self._transport.request("GET", f"/api/v1/namespaces/{SYSTEM}/secrets/{SECRET}")
                for name, content in (secret.get("data") or {}).items():
                    (self._certificates / f".{name}").write_bytes(base64.b64decode(content))
                    (self._certificates / f".{name}").rename(self._certificates / name)
            await asyncio.sleep(0.2)


def _leave_out_pods(schema: dict[str, Any]) -> None:
    """Take a pod's template as it is: its schema is nearly all of 1.4 MB, which the API server checks at every change."""
    for name, inner in (schema.get("properties") or {}).items():
        if name == "template":
            schema["properties"][name] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        else:
            _leave_out_pods(inner)
    if "items" in schema:
        _leave_out_pods(schema["items"])


async def make_queue(kueue: Kueue, namespace: str, *, accelerators: int) -> str:
    """Make a queue with so many accelerators, and return the path of what gives them."""
    amounts = {"cpu": "100", "memory": "1Ti", "nvidia.com/gpu": str(accelerators)}
    flavor = {"name": "default", "resources": [{"name": name, "nominalQuota": one} for name, one in amounts.items()]}
    group = {"coveredResources": list(amounts), "flavors": [flavor]}
    version = "kueue.x-k8s.io/v1beta2"

    async def make(kind: str, plural: str, name: str, spec: dict[str, Any]) -> None:
        body = {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}

        async def made() -> bool:
            # The API server may learn of a webhook's certificate, or of a kind, a moment after Kueue.
            try:
                await kueue.create(f"{QUEUES}/{plural}", body)
            except (NotInstalled, OSError):
                return False
            except Conflict:
                return True
            return True

        await eventually(made, f"a {kind} to be accepted")

    await make("ResourceFlavor", "resourceflavors", "default", {})
    await make("ClusterQueue", "clusterqueues", "all", {"namespaceSelector": {}, "resourceGroups": [group]})
    await make("LocalQueue", f"namespaces/{namespace}/localqueues", "research", {"clusterQueue": "all"})
    return f"{QUEUES}/clusterqueues/all"
