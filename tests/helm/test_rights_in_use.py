"""The operator and the gateway on a real API server, as users with exactly the chart's rights: enough, and nothing left over.

What acts on the operator's children in a cluster (KubeRay, the Job controller, Ray's dashboard) is played by the test, because no
pod runs here; every call to the API server is real, and so is its answer to "may this user do that".
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from aiohttp import web

from belvedere_operators.alerts.secret import kept_token
from belvedere_operators.alerts.webhook import AlertWebhook
from belvedere_operators.controllers.context import Settings
from belvedere_operators.controlplane.cluster import Candidacy, ClusterOperator
from belvedere_operators.manifests.network import read_network_peers
from belvedere_operators.manifests.pods import read_pod_defaults
from belvedere_operators.runtime import SystemClock
from belvedere_platform.artifacts import ArtifactStore
from belvedere_platform.resources.base import API_VERSION
from belvedere_platform.store import Kind, Manifest, ObjectStore
from belvedere_platform.store.kinds import (
    DEPLOYMENT,
    HORIZONTAL_POD_AUTOSCALER,
    MODEL_SERVICE,
    POD_DISRUPTION_BUDGET,
    RAY_JOB,
    RAY_SERVICE,
    TRAINING_RUN,
)
from belvedere_platform.store.kinds import SERVICE as SERVICE_KIND
from belvedere_platform.store.kubernetes import KubernetesStore
from belvedere_serving.gateway.watch import Observed, Watcher

from .actors import Actors
from .conftest import S3, named, render
from .ledger import Ledger, Recording
from .test_rights import Right, rights

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

UNUSED_HERE: dict[Right, str] = {
    (group, f"{plural}/finalizers", "update"): "asked only by clusters that enforce who may block an owner's deletion"
    for group, plural in (
        ("belvedere.dev", "trainingruns"),
        ("belvedere.dev", "modelversions"),
        ("belvedere.dev", "engines"),
        ("belvedere.dev", "modelservices"),
        ("ray.io", "rayservices"),
        ("apps", "deployments"),
    )
}
UNUSED_HERE |= {
    ("keda.sh", "scaledobjects", verb): "asked where KEDA is installed" for verb in ("create", "patch", "delete")
} | {("networking.k8s.io", "networkpolicies", "delete"): "asked when the policies are switched off"}
UNUSED_HERE |= {
    ("ray.io", "rayclusters", verb): "asked when a service is scaled whose cluster KubeRay made; tests/cluster does"
    for verb in ("get", "patch")
}
LIMIT_SECONDS = 180


class Cluster:
    """The API server, with a namespace for the chart and one for models."""

    def __init__(self, admin: Path, folder: Path) -> None:
        mark = uuid.uuid4().hex[:6]
        self.admin, self._folder = admin, folder
        self.system, self.models = f"system-{mark}", f"models-{mark}"

    def kubectl(self, *words: str, given: list[Manifest] | None = None) -> str:
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.admin), *words],
            input=None if given is None else yaml.safe_dump_all(given),
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, values: Manifest) -> list[Manifest]:
        """Apply the namespaces and the chart's accounts, roles and bindings; return all that the chart makes."""
        manifests = render(values, "--namespace", self.system)
        names = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in (self.system, self.models)]
        kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
        self.kubectl("apply", "--server-side", "-f", "-", given=names)
        wanted = [one for one in manifests if one["kind"] in kinds]
        self.kubectl("apply", "--server-side", "-f", "-", given=wanted)
        return manifests

    def user(self, account: str) -> Path:
        """Return a kubeconfig for the user that pods with an account are."""
        token = self.kubectl("create", "token", account, "--namespace", self.system).strip()
        config = yaml.safe_load(self.admin.read_text())
        config["users"] = [{"name": "user", "user": {"token": token}}]
        config["contexts"][0]["context"]["user"] = "user"
        config["current-context"] = config["contexts"][0]["name"]
        path = self._folder / f"{account}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def remove(self) -> None:
        self.kubectl("delete", "--wait=false", "--ignore-not-found", "namespace", self.system, self.models)
        for kind in ("clusterrole", "clusterrolebinding"):
            components = ("operator", "gateway", "operator-nodes")
            names = [f"{self.system}-belvedere-{component}" for component in components]
            self.kubectl("delete", "--ignore-not-found", kind, *names)


@pytest.fixture
def cluster(kubeconfig: Path, tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(kubeconfig, tmp_path)
    yield made
    made.remove()


@pytest.fixture
async def opened() -> AsyncIterator[Callable[[Path, Ledger | None], KubernetesStore]]:
    """Open stores; they are closed with the test."""
    stores: list[KubernetesStore] = []

    def one(kubeconfig: Path, ledger: Ledger | None = None) -> KubernetesStore:
        store = KubernetesStore(kubeconfig=str(kubeconfig))
        if ledger is not None:
            store._transport = Recording(kubeconfig, ledger)
        stores.append(store)
        return store

    yield one
    for store in stores:
        await store.close()


@pytest.fixture
async def actors(cluster: Cluster, opened: Any, tmp_path: Path) -> AsyncIterator[Actors]:
    made = Actors(opened(cluster.admin), cluster.models, ArtifactStore(str(tmp_path / "artifacts")))
    async with made.dashboard():
        yield made


async def eventually(check: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask until the answer is true: what other processes come to cannot be awaited."""
    deadline = asyncio.get_running_loop().time() + LIMIT_SECONDS
    while not await check():
        assert asyncio.get_running_loop().time() < deadline, f"waited {LIMIT_SECONDS} s for {what}"
        await asyncio.sleep(0.2)


def resource(kind: Kind, name: str, namespace: str, spec: Manifest, **metadata: Any) -> Manifest:
    head = {"apiVersion": API_VERSION, "kind": kind.kind}
    return {**head, "metadata": {"name": name, "namespace": namespace, **metadata}, "spec": spec}


SERVICE: Manifest = {
    "model": "clip",
    "version": "v1",
    "scaling": {"maxReplicas": 2},
    "rollout": {"steps": [{"weight": 50, "holdSeconds": 1}], "intervalSeconds": 1, "keepStableSeconds": 0},
}


@dataclass
class Story:
    """From a TrainingRun to a service that has replaced its version, an alert and an end."""

    cluster: Cluster
    admin: ObjectStore
    artifacts: ArtifactStore
    actors: Actors

    async def tell(self, alert: Callable[[], Awaitable[None]]) -> None:
        models = self.cluster.models
        self.artifacts.push("dataset", {"manifest.json": b"{}"}, config={}, tag="datasets/emoji")
        run = {"model": "clip", "data": {"dataset": "emoji"}, "optimization": {"pairs": 1000}}
        await self._apply(resource(TRAINING_RUN, "v1", models, run))
        await self._apply(resource(MODEL_SERVICE, "emoji", models, SERVICE))
        await eventually(lambda: self._stable("v1"), "the first version to serve")
        await alert()
        # A run whose queue has not let it run yet, and that is suspended: its job goes.
        await self._apply(resource(TRAINING_RUN, "queued", models, {**run, "queue": "research"}))
        await eventually(lambda: self._has_job("queued-1"), "the job that waits in the queue")
        await self._apply(resource(TRAINING_RUN, "queued", models, {**run, "queue": "research", "suspend": True}))
        await eventually(lambda: self._has_no_job("queued-1"), "the job to leave the queue")
        # A replica that another replaced: its address must go, and by the operator's hand, so before its version does.
        self.actors.generation = "b"
        await eventually(self._addresses_follow, "the addresses to follow the replicas")
        await self._apply(resource(TRAINING_RUN, "v2", models, run))
        changed = {**SERVICE, "version": "v2"}
        await self._apply(resource(MODEL_SERVICE, "emoji", models, changed))
        await eventually(lambda: self._candidate("v2"), "the second version to be tried")
        ask = {"verb": "promote", "candidate": "v2", "id": "1"}
        annotations = {"belvedere.dev/rollout-request": json.dumps(ask)}
        await self._apply(resource(MODEL_SERVICE, "emoji", models, changed, annotations=annotations))
        await eventually(lambda: self._stable("v2"), "the second version to be promoted")
        await eventually(self._first_is_gone, "the first version to be retired")
        for version in ("v1", "v2"):
            asked = {**SERVICE, "backend": "triton", "version": version}
            await self._apply(resource(MODEL_SERVICE, "picture", models, asked))
            await eventually(partial(self._served_by_triton, version), f"{version} and no other to be Triton's")
        # Asked for, changed, and not asked for any more: so are the autoscaler, and the disruption budget with it.
        picture = {**SERVICE, "backend": "triton", "version": "v2"}
        for most, percent, objects in ((2, 50, 1), (2, 60, 1), (1, None, 0)):
            asked = {"autoscaler": {"kind": "HorizontalPodAutoscaler", "targetCpuPercent": percent}} if percent else {}
            changed = {**picture, "scaling": {"maxReplicas": most, **asked}}
            await self._apply(resource(MODEL_SERVICE, "picture", models, changed))
            await eventually(partial(self._scaled_by, percent, objects), f"an autoscaler at {percent} %")

    async def _apply(self, manifest: Manifest) -> None:
        await self.admin.apply(manifest, field_manager="person")

    async def _status(self) -> Manifest:
        found = await self.admin.get(MODEL_SERVICE, "emoji", self.cluster.models)
        return dict(found.get("status") or {})

    async def _stable(self, version: str) -> bool:
        status = await self._status()
        ready = {one["type"]: one["status"] for one in status.get("conditions", [])}.get("Ready")
        return (status.get("stable") or {}).get("version") == version and ready == "True"

    async def _candidate(self, version: str) -> bool:
        return ((await self._status()).get("candidate") or {}).get("version") == version

    async def _has_job(self, name: str) -> bool:
        found = await self.admin.list(RAY_JOB, self.cluster.models)
        return name in [one["metadata"]["name"] for one in found.items]

    async def _has_no_job(self, name: str) -> bool:
        return not await self._has_job(name)

    async def _first_is_gone(self) -> bool:
        found = await self.admin.list(RAY_SERVICE, self.cluster.models)
        return [one["metadata"]["name"] for one in found.items] == ["emoji-v2"]

    async def _served_by_triton(self, version: str) -> bool:
        found = [await self.admin.list(kind, self.cluster.models) for kind in (DEPLOYMENT, SERVICE_KIND)]
        return all([one["metadata"]["name"] for one in each.items] == [f"picture-{version}"] for each in found)

    async def _scaled_by(self, percent: int | None, budgets: int) -> bool:
        scalers = (await self.admin.list(HORIZONTAL_POD_AUTOSCALER, self.cluster.models)).items
        targets = [one["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"] for one in scalers]
        found = (await self.admin.list(POD_DISRUPTION_BUDGET, self.cluster.models)).items
        of_picture = [one for one in found if one["metadata"]["name"] == "picture-replicas"]
        return targets == ([percent] if percent else []) and len(of_picture) == budgets

    async def _addresses_follow(self) -> bool:
        text = self.cluster.kubectl("get", "endpointslices", "-n", self.cluster.models, "-o", "json")
        replicas = [one["metadata"]["annotations"]["belvedere.dev/replica"] for one in json.loads(text)["items"]]
        return set(replicas) == {"b"}


def settings_of(cluster: Cluster, manifests: list[Manifest], folder: Path, namespaces: tuple[str, ...]) -> Settings:
    defaults = folder / "pods.yaml"
    peers = folder / "peers.yaml"
    for file in (defaults, peers):
        file.write_text(named(manifests, "ConfigMap", "belvedere-pod-defaults")["data"][file.name])
    return Settings(
        instance="rights",
        artifacts_url=str(folder / "artifacts"),
        store_url="kubernetes://",
        namespaces=namespaces,
        prometheus_url="http://127.0.0.1:9",
        toolchain={"onnxruntime": "1.0"},
        pod_defaults=read_pod_defaults(defaults),
        network_peers=read_network_peers(peers),
        count_accelerators=True,
    )


async def test_in_watched_namespaces_every_right_is_used_and_none_is_missing(
    cluster: Cluster, opened: Any, actors: Actors, tmp_path: Path
) -> None:
    manifests = cluster.install({**S3, "watchNamespaces": [cluster.models], "models": {"accelerators": "nodes"}})
    ledger, clock = Ledger(), SystemClock()
    store = opened(cluster.user("belvedere-operator"), ledger)
    token = await kept_token(store, cluster.system, "belvedere-alerts")
    assert await kept_token(store, cluster.system, "belvedere-alerts") == token
    settings = settings_of(cluster, manifests, tmp_path, (cluster.models,))
    candidacy = Candidacy(namespace=cluster.system, name="belvedere-operator", identity="one")
    operator = ClusterOperator(store, clock, settings, candidacy)

    async def alert() -> None:
        app = web.Application()
        AlertWebhook(store, clock=clock, secret=token).add_to(app)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        labels = {"alertname": "A", "namespace": cluster.models, "service": "emoji", "belvedere_action": "heartbeat"}
        times = {"startsAt": "2026-01-01T00:00:00Z", "endsAt": "0001-01-01T00:00:00Z"}
        told = {"status": "firing", "labels": labels, "annotations": {}, "fingerprint": "f", **times}
        message = {"version": "4", "alerts": [told]}
        async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as client:
            answer = await client.post(f"http://127.0.0.1:{runner.addresses[0][1]}/alerts", json=message)
        await runner.cleanup()
        assert answer.json() == {"accepted": 1, "ignored": []}

    story = Story(cluster, opened(cluster.admin), ArtifactStore(str(tmp_path / "artifacts")), actors)
    tasks = [asyncio.create_task(operator.run()), asyncio.create_task(actors.run())]
    telling = asyncio.create_task(story.tell(alert))
    try:
        await asyncio.wait([*tasks, telling], return_when=asyncio.FIRST_COMPLETED)
        assert ledger.refused == set()
        await telling
    finally:
        for task in (*tasks, telling):
            task.cancel()
        await asyncio.gather(*tasks, telling, return_exceptions=True)
        await operator.close()
    assert ledger.refused == set()
    granted = {right for _, right in rights(manifests, "operator")}
    assert granted - ledger.used == set(UNUSED_HERE)


async def test_with_all_namespaces_the_operator_reads_them_all(cluster: Cluster, opened: Any, tmp_path: Path) -> None:
    manifests = cluster.install({**S3, "models": {"accelerators": "nodes"}})
    ledger = Ledger()
    store = opened(cluster.user("belvedere-operator"), ledger)
    operator = ClusterOperator(store, SystemClock(), settings_of(cluster, manifests, tmp_path, ()))
    running = asyncio.create_task(operator.run())
    try:
        await asyncio.wait_for(operator.wait_ready(), LIMIT_SECONDS)
        assert set((await operator.parts()).values()) == {"ready"}
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await operator.close()
    # In a namespace that an earlier test deleted and that is not gone yet, nothing new may be written.
    others = {one for one in ledger.refused if "/namespaces/models-" in one and cluster.models not in one}
    assert ledger.refused - others == set()


@pytest.mark.parametrize("everywhere", [False, True], ids=["watched", "all"])
async def test_the_gateway_needs_and_uses_all_its_rights(cluster: Cluster, opened: Any, everywhere: bool) -> None:
    namespaces = [] if everywhere else [cluster.models]
    manifests = cluster.install({**S3, "watchNamespaces": namespaces})
    ledger, listed = Ledger(), asyncio.Event()
    watcher = Watcher(opened(cluster.user("belvedere-gateway"), ledger), Observed(), listed.set, namespaces=namespaces)
    running = asyncio.create_task(watcher.run())

    async def watching() -> bool:
        return granted <= ledger.used or bool(ledger.refused)

    granted = {right for _, right in rights(manifests, "gateway")}
    try:
        await asyncio.wait_for(listed.wait(), LIMIT_SECONDS)
        await eventually(watching, "both watches")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert ledger.refused == set()
    assert ledger.used == granted
