"""A small world around the controller: the real embedded store, a clock, replicas that appear, and traffic that is counted."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from belvedere_operators.controllers.context import Context, Settings
from belvedere_operators.controllers.modelservice.controller import ModelServiceReconciler
from belvedere_operators.controllers.modelservice.metrics import Prometheus
from belvedere_operators.runtime import Caches, FakeClock, Key
from belvedere_platform.errors import NotFound
from belvedere_platform.store import Kind, Manifest, ObjectStore
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import (
    CONFIG_MAP,
    DEPLOYMENT,
    ENDPOINT_SLICE,
    ENGINE,
    MODEL_SERVICE,
    MODEL_VERSION,
    RAY_SERVICE,
)
from belvedere_platform.telemetry import gateway_metrics

NAMESPACE, SERVICE = "default", "search"
KEY = Key(NAMESPACE, SERVICE)
DIGEST = "sha256:" + "a" * 64
EDGES = gateway_metrics.LATENCY_EDGES_MILLISECONDS
API = "belvedere.dev/v1alpha1"


@dataclass
class Behaviour:
    """How a version answers."""

    error_rate: float = 0.0
    milliseconds: float = 20.0
    agreement: dict[str, float] = field(default_factory=lambda: {"embed_text": 1.0, "embed_image": 1.0})


class Traffic:
    """Counts what Envoy would, and answers the controller's queries from it."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(11)
        self.behaviour: dict[str, Behaviour] = defaultdict(Behaviour)
        self.counts: dict[str, dict[str, float]] = {
            name: defaultdict(float) for name in ("requests", "errors", "shadow")
        }
        self.within: dict[tuple[str, float], float] = defaultdict(float)
        self.in_flight: float | None = 1.0
        self.effective: dict[str, float] = {}
        self.down = False
        self.num_asked = 0
        self.rate = 40.0

    def flow(self, route: dict[str, Any], seconds: float) -> None:
        self.effective = {entry["version"]: float(entry["weight"]) for entry in route["versions"]}
        for entry in route["versions"]:
            version, share = entry["version"], entry["weight"] / 100
            how = self.behaviour[version]
            requests = int(self.rng.poisson(self.rate * seconds * share))
            if not requests:
                continue
            self.counts["requests"][version] += requests
            self.counts["errors"][version] += int(self.rng.binomial(requests, how.error_rate))
            times = self.rng.lognormal(np.log(how.milliseconds), 0.5, requests)
            for edge in (*EDGES, np.inf):
                self.within[version, float(edge)] += int((times <= edge).sum())
        if route.get("shadow"):
            candidate = route["shadow"]["candidate"]
            for model, agreement in self.behaviour[candidate].agreement.items():
                compared = int(self.rng.poisson(self.rate * seconds * route["shadow"]["percent"] / 200))
                agreed = int(self.rng.binomial(compared, agreement))
                self.counts["shadow"][f"{candidate}/{model}/true"] += agreed
                self.counts["shadow"][f"{candidate}/{model}/false"] += compared - agreed

    def respond(self, request: httpx.Request) -> httpx.Response:
        self.num_asked += 1
        if self.down:
            raise httpx.ConnectError("connection refused", request=request)
        query = httpx.QueryParams(request.content.decode())["query"]

        parts = re.split(r', "belvedere_question", "(\w+)", "", ""\)(?: or label_replace\(|$)', query)
        result = []
        for expression, name in zip(parts[0:-1:2], parts[1::2], strict=True):
            for element in self._answer(expression.removeprefix("label_replace(")):
                result.append({**element, "metric": {**element["metric"], "belvedere_question": name}})
        return httpx.Response(200, json={"status": "success", "data": {"result": result}})

    def _answer(self, query: str) -> list[dict[str, Any]]:
        if query == gateway_metrics.requests_query(NAMESPACE, SERVICE):
            return [_vector(value, version=version) for version, value in self.counts["requests"].items()]
        if query == gateway_metrics.errors_query(NAMESPACE, SERVICE):
            return [_vector(self.counts["errors"][version], version=version) for version in self.counts["requests"]]
        if query == gateway_metrics.latency_buckets_query(NAMESPACE, SERVICE):
            return [
                _vector(value, version=version, le="+Inf" if np.isinf(edge) else f"{edge:g}")
                for (version, edge), value in self.within.items()
            ]
        if query == gateway_metrics.shadow_comparisons_query(NAMESPACE, SERVICE):
            return [
                _vector(value, **dict(zip(("candidate", "model", "agreed"), key.split("/"), strict=True)))
                for key, value in self.counts["shadow"].items()
            ]
        if query == gateway_metrics.effective_weight_query(NAMESPACE, SERVICE):
            return [_vector(value, version=version, protocol="grpc") for version, value in self.effective.items()]
        if query.startswith("sum(avg_over_time"):
            return [] if self.in_flight is None else [_vector(self.in_flight)]
        return []


def _vector(value: float, **labels: str) -> dict[str, Any]:
    return {"metric": labels, "value": [0, str(value)]}


class World:
    """Everything outside the controller; `run` lets time pass."""

    def __init__(self, store: ObjectStore, clock: FakeClock) -> None:
        self.clock = clock
        self.traffic = Traffic()
        self.settings = Settings(
            instance="test", artifacts_url="file:///artifacts", store_url="sqlite:///store", cluster_cpus=None
        )
        self.unroutable: set[str] = set()
        self.use(store)

    def use(self, store: ObjectStore) -> None:
        """Start the controller anew on a store: nothing is remembered but what is in it."""
        self.store = store
        context = Context(store=store, caches=Caches(store, clock=self.clock), clock=self.clock, settings=self.settings)
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.traffic.respond))
        self.reconciler = ModelServiceReconciler(context, Prometheus(client, "http://prometheus"))

    async def apply(self, manifest: Manifest) -> Manifest:
        return await self.store.apply(manifest, field_manager="test")

    async def get(self, kind: Kind, name: str) -> Manifest | None:
        try:
            return await self.store.get(kind, name, NAMESPACE)
        except NotFound:
            return None

    async def add_version(self, version: str, *, engine_reason: str = "Built", model: str = "clip") -> None:
        """Make a ModelVersion, and its Engine as the engine controller would."""
        owner = await self.apply(
            {
                "apiVersion": API,
                "kind": "ModelVersion",
                "metadata": {"name": version, "namespace": NAMESPACE},
                "spec": {"model": model, "digest": DIGEST, "evaluation": {"passed": True}},
            }
        )
        assert owner["metadata"]["uid"]
        await self.apply(
            {
                "apiVersion": API,
                "kind": "Engine",
                "metadata": {"name": f"{version}-onnxruntime-fp32", "namespace": NAMESPACE},
                "spec": {"modelVersion": version},
            }
        )
        ready = engine_reason == "Built"
        await self.store.apply_status(
            {
                "apiVersion": API,
                "kind": "Engine",
                "metadata": {"name": f"{version}-onnxruntime-fp32", "namespace": NAMESPACE},
                "status": {
                    **({"digest": DIGEST} if ready else {}),
                    "conditions": [
                        {
                            "type": "Ready",
                            "status": "True" if ready else "False",
                            "reason": engine_reason,
                            "message": "" if ready else "cosine 0.41 is below 0.98",
                        }
                    ],
                },
            },
            field_manager="belvedere-engine",
        )

    async def ask(self, version: str, *, annotations: dict[str, str] | None = None, **changes: Any) -> Manifest:
        """Apply the ModelService with this version; keywords replace parts of its spec."""
        rollout = {
            "steps": [{"weight": 10, "holdSeconds": 4}, {"weight": 50, "holdSeconds": 4}],
            "intervalSeconds": 2,
            "keepStableSeconds": 20,
            "deadlineSeconds": 600,
        }
        spec = {
            "model": "clip",
            "version": version,
            "scaling": {"minReplicas": 1, "maxReplicas": 3},
            **changes,
            "rollout": {**rollout, **changes.get("rollout", {})},
        }
        metadata: dict[str, Any] = {"name": SERVICE, "namespace": NAMESPACE}
        if annotations:
            metadata["annotations"] = annotations
        return await self.apply({"apiVersion": API, "kind": "ModelService", "metadata": metadata, "spec": spec})

    async def reconcile(self) -> None:
        await self.reconciler.reconcile(KEY)

    async def run(self, seconds: float, *, until: str | None = None) -> float:
        """Let time pass in steps of one second, and return how much did; stop early when the rollout reaches a phase."""
        passed = 0.0
        while passed < seconds:
            await self.tick()
            passed += 1
            if until is not None and (await self.status()).get("rollout", {}).get("phase") == until:
                return passed
        return passed

    async def tick(self, seconds: float = 1.0) -> None:
        await self.settle_replicas()
        route = await self.route()
        if route is not None:
            self.traffic.flow(route, seconds)
        await self.clock.advance(seconds)
        await self.reconcile()

    async def settle_replicas(self) -> None:
        """Do what Ray or a cluster does: each replica asked for becomes an address, others vanish."""
        wanted: dict[str, tuple[str, Manifest]] = {}
        for service in await self.servers():
            version = service["metadata"]["labels"]["belvedere.dev/version"]
            for index in range(_replicas(service)):
                wanted[f"{SERVICE}-{version}-{index}"] = (version, service)
        for name, (version, service) in wanted.items():
            await self.apply(_slice(name, version, service, ready=version not in self.unroutable))
        for existing in (await self.store.list(ENDPOINT_SLICE, NAMESPACE)).items:
            if existing["metadata"]["name"] not in wanted:
                await self.store.delete(ENDPOINT_SLICE, existing["metadata"]["name"], NAMESPACE)

    async def servers(self) -> list[Manifest]:
        """Return what serves versions, of either backend."""
        listings = [await self.store.list(kind, NAMESPACE) for kind in (RAY_SERVICE, DEPLOYMENT)]
        return [one for listing in listings for one in listing.items]

    async def status(self) -> dict[str, Any]:
        manifest = await self.get(MODEL_SERVICE, SERVICE)
        return (manifest or {}).get("status", {})

    async def condition(self, type_: str) -> dict[str, Any]:
        return next(one for one in (await self.status())["conditions"] if one["type"] == type_)

    async def route(self) -> dict[str, Any] | None:
        manifest = await self.get(CONFIG_MAP, f"{SERVICE}-gateway")
        return json.loads(manifest["data"]["route.json"]) if manifest else None

    async def weights(self) -> dict[str, int]:
        route = await self.route()
        return {one["version"]: one["weight"] for one in route["versions"]} if route else {}

    async def journal(self) -> dict[str, Any]:
        manifest = await self.get(CONFIG_MAP, f"{SERVICE}-evidence")
        return json.loads(manifest["data"]["evidence.json"]) if manifest else {}

    async def running(self) -> set[str]:
        return {one["metadata"]["labels"]["belvedere.dev/version"] for one in await self.servers()}

    async def replicas_of(self, version: str) -> int:
        manifest = await self.get(RAY_SERVICE, f"{SERVICE}-{version}")
        assert manifest is not None
        return int(json.loads(manifest["spec"]["serveConfigV2"])["applications"][0]["deployments"][0]["num_replicas"])

    async def decisions(self) -> list[tuple[str, str]]:
        return [(one["decision"], one["signal"]) for one in (await self.status())["decisions"]]

    async def fire(self, name: str, action: str, *, version: str | None = None, status: str = "firing") -> None:
        """Write an alert into the service's book, as the webhook does."""
        from belvedere_operators.alerts.webhook import AlertWebhook

        webhook = AlertWebhook(self.store, clock=self.clock, secret="secret")
        labels = {"alertname": name, "belvedere_action": action, "namespace": NAMESPACE, "service": SERVICE}
        if version is not None:
            labels["version"] = version
        alert = {
            "fingerprint": f"{name}-{version}",
            "status": status,
            "labels": labels,
            "annotations": {"summary": f"{name} says so"},
            "startsAt": self.clock().isoformat(),
        }
        heard, ignored = webhook._sort([alert])
        assert not ignored
        for place, told in heard.items():
            await webhook._write(place, told)


def _replicas(service: Manifest) -> int:
    if service["kind"] == DEPLOYMENT.kind:
        return int(service["spec"]["replicas"])
    return int(json.loads(service["spec"]["serveConfigV2"])["applications"][0]["deployments"][0]["num_replicas"])


def _slice(name: str, version: str, service: Manifest, *, ready: bool) -> Manifest:
    metadata = service["metadata"]
    return {
        "apiVersion": ENDPOINT_SLICE.api_version,
        "kind": ENDPOINT_SLICE.kind,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"belvedere.dev/service": SERVICE, "belvedere.dev/version": version},
            "ownerReferences": [
                {
                    "apiVersion": service["apiVersion"],
                    "kind": service["kind"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                }
            ],
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 30000}, {"name": "grpc", "port": 40000}],
        "endpoints": [{"addresses": ["127.0.0.1"], "conditions": {"ready": ready, "serving": ready}}],
    }


@pytest.fixture
async def make_world(tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[World]]]:
    stores: list[EmbeddedStore] = []

    async def make() -> World:
        clock = FakeClock()
        store = EmbeddedStore(tmp_path / f"store{len(stores)}.sqlite", clock=clock)
        stores.append(store)
        return World(store, clock)

    yield make
    for store in stores:
        await store.close()


@pytest.fixture
async def world(make_world: Callable[[], Awaitable[World]]) -> World:
    return await make_world()


@pytest.fixture
async def serving(world: World) -> World:
    """A service whose first version serves."""
    await world.add_version("v1")
    await world.ask("v1")
    await world.reconcile()
    await world.run(6)
    assert await world.weights() == {"v1": 100}
    return world


__all__ = ["ENGINE", "KEY", "MODEL_VERSION", "Behaviour", "World"]
