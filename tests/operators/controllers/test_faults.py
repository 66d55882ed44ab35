"""A fault at every single write of every controller, from a data set to a served version: the end is that of a day without any."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from belvedere_operators.controllers.endpoints.controller import EndpointsReconciler
from belvedere_operators.controllers.engine.controller import EngineReconciler
from belvedere_operators.controllers.modelservice.controller import ModelServiceReconciler
from belvedere_operators.controllers.modelservice.metrics import Prometheus
from belvedere_operators.controllers.modelversion.controller import ModelVersionReconciler
from belvedere_operators.controllers.trainingrun.controller import TrainingRunReconciler
from belvedere_operators.runtime import Key
from belvedere_platform.errors import Conflict, Unavailable
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.kinds import (
    CONFIG_MAP,
    ENDPOINT_SLICE,
    ENGINE,
    EVENT,
    JOB,
    MODEL_SERVICE,
    MODEL_VERSION,
    PROMETHEUS_RULE,
    RAY_JOB,
    RAY_SERVICE,
    TRAINING_RUN,
)

KINDS = (
    TRAINING_RUN, RAY_JOB, MODEL_VERSION, ENGINE, JOB, MODEL_SERVICE, RAY_SERVICE,
    CONFIG_MAP, PROMETHEUS_RULE, ENDPOINT_SLICE,
)  # fmt: skip
PARITY = {"cosineMin": 0.99, "cosineMean": 0.99, "top1Agreement": 1.0, "samples": 8}


class FaultyStore:
    """Passes everything on; one write fails, either before it is done or after it, when only the answer is lost."""

    def __init__(self, store: Any, *, answer_lost: bool) -> None:
        self._store = store
        self._answer_lost = answer_lost
        self._left = 0
        self.faults = 0

    def fail_at(self, write: int) -> None:
        self._left = write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def apply(self, *given: Any, **named: Any) -> Any:
        return await self._write(self._store.apply, given, named)

    async def apply_status(self, *given: Any, **named: Any) -> Any:
        return await self._write(self._store.apply_status, given, named)

    async def delete(self, *given: Any, **named: Any) -> Any:
        return await self._write(self._store.delete, given, named)

    async def _write(self, call: Callable[..., Any], given: Any, named: Any) -> Any:
        self._left -= 1
        fails = self._left == 0
        if fails and not self._answer_lost:
            self.faults += 1
            raise Unavailable("the API server does not answer")
        done = await call(*given, **named)
        if fails:
            self.faults += 1
            raise Unavailable("the API server's answer was lost")
        return done


class Day:
    """Every controller on one bench, and what a cluster does with the children."""

    def __init__(self, bench: Any, store: Any, *, faulty: bool) -> None:
        self.bench, self.store, self.faulty = bench, store, faulty
        bench.context.__dict__["store"] = store
        bench.answer = self._answer
        context = bench.context
        self.controllers: list[tuple[Kind, Any]] = [
            (TRAINING_RUN, TrainingRunReconciler(context)),
            (MODEL_VERSION, ModelVersionReconciler(context)),
            (ENGINE, EngineReconciler(context)),
            (MODEL_SERVICE, ModelServiceReconciler(context, Prometheus(context.http, "http://prometheus"))),
            (RAY_SERVICE, EndpointsReconciler(context)),
        ]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/serve/applications/":
            name = request.url.host.removesuffix(".head")
            replicas = [{"replica_id": "r1", "actor_name": "r1", "state": "RUNNING", "node_ip": "10.0.0.1"}]
            targets = [{"name": "r1", "port": 30000}]
            group = {"app_name": name, "protocol": "HTTP", "route_prefix": "/", "targets": targets}
            deployments = {"V2Server": {"name": "V2Server", "replicas": replicas}}
            return httpx.Response(
                200, json={"applications": {name: {"deployments": deployments}}, "target_groups": [group]}
            )
        return httpx.Response(200, json={"status": "success", "data": {"result": []}})

    async def reconcile(self, reconciler: Any, key: Key) -> None:
        """Reconcile as the queue does: again after an error. A faulty day fails at the first write, then at the second, …"""
        for attempt in range(1, 50):
            if self.faulty:
                self.store.fail_at(attempt)
            with contextlib.suppress(Unavailable, Conflict):
                await reconciler.reconcile(key)
                return
        raise AssertionError(f"{key} never comes to an end")

    async def step(self) -> None:
        """Let every controller see every object of its kind, and then the cluster its children."""
        for kind, reconciler in self.controllers:
            for one in (await self.bench.store.list(kind, "default")).items:
                await self.reconcile(reconciler, Key("default", one["metadata"]["name"]))
        await self._play_cluster()
        await self.bench.clock.advance(2)

    async def _play_cluster(self) -> None:
        for job in (await self.bench.store.list(RAY_JOB, "default")).items:
            name = job["metadata"]["name"]
            self.bench.artifacts.push("model", {"m": b"m"}, config={"metrics": {"r1": 0.5}}, tag="runs/default/v1/1")
            await self.bench.set_status(RAY_JOB, name, jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")
        for job in (await self.bench.store.list(JOB, "default")).items:
            arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
            digest, tag = (arguments[arguments.index(option) + 1] for option in ("--model-digest", "--tag"))
            built = {"modelDigest": digest, "parity": {"embed_text": PARITY}, "latency": {}, "toolchain": {}}
            self.bench.artifacts.push("engine", {"e": b"e"}, config={**built, "device": "cpu"}, tag=tag)
            await self.bench.set_status(JOB, job["metadata"]["name"], succeeded=1)
        for service in (await self.bench.store.list(RAY_SERVICE, "default")).items:
            name = service["metadata"]["name"]
            cluster = {"head": {"serviceIP": f"{name}.head"}, "endpoints": {"dashboard": "8265"}}
            active = {"applicationStatuses": {name: {}}, "rayClusterStatus": cluster}
            await self.bench.set_status(RAY_SERVICE, name, activeServiceStatus=active)

    async def end(self) -> dict[str, Manifest]:
        """Return everything that there is, without what the store alone decides."""
        found = {}
        for kind in KINDS:
            for one in (await self.bench.store.list(kind, "default")).items:
                metadata = {
                    name: one["metadata"].get(name) for name in ("labels", "annotations", "generation", "finalizers")
                }
                owners = [owner["name"] for owner in one["metadata"].get("ownerReferences", ())]
                body = {name: value for name, value in one.items() if name != "metadata"}
                found[f"{kind.kind}/{one['metadata']['name']}"] = {**body, "metadata": metadata, "owners": owners}
        return found

    async def events(self) -> set[tuple[str, str]]:
        listing = await self.bench.store.list(EVENT, "default")
        return {(one["involvedObject"]["name"], one["reason"]) for one in listing.items}


async def live(bench: Any, store: Any, *, faulty: bool) -> tuple[dict[str, Manifest], set[tuple[str, str]]]:
    """Train, publish, build and serve. Return what is left, and what was said about it."""
    day = Day(bench, store, faulty=faulty)
    bench.artifacts.push("dataset", {"manifest.json": b"{}"}, config={}, tag="datasets/emoji")
    gate = {"gates": [{"metric": "r1", "minimum": 0.4}]}
    run = {"model": "clip", "data": {"dataset": "emoji"}, "optimization": {"pairs": 10}, "evaluation": gate}
    await bench.apply("TrainingRun", "v1", run)
    await bench.apply("ModelService", "search", {"model": "clip", "version": "v1"})
    for _ in range(8):
        await day.step()
    return await day.end(), await day.events()


def comparable(bench: Any, end: dict[str, Manifest]) -> dict[str, Manifest]:
    """Return the same without what no two days share: their folders, and the uids that a RayJob tells its trainer."""
    for name, one in end.items():
        if name.startswith("RayJob/"):
            one["spec"]["runtimeEnvYAML"] = ""
    text = json.dumps(end, sort_keys=True)
    return dict(json.loads(text.replace(str(bench.context.settings.home), "HOME")))


@pytest.mark.slow
@pytest.mark.parametrize("answer_lost", [False, True], ids=["write-fails", "answer-lost"])
async def test_a_fault_at_every_write_changes_nothing_in_the_end(
    make_bench: Callable[[str], Any], answer_lost: bool
) -> None:
    quiet = make_bench("quiet")
    expected, said = await live(quiet, quiet.store, faulty=False)
    bench = make_bench("faulty")
    store = FaultyStore(bench.store, answer_lost=answer_lost)
    end, told = await live(bench, store, faulty=True)
    assert store.faults > 15
    assert comparable(bench, end) == comparable(quiet, expected)
    conditions = {one["type"]: one["status"] for one in end["ModelService/search"]["status"]["conditions"]}
    assert conditions["EngineReady"] == "True"
    assert end["TrainingRun/v1"]["status"]["phase"] == "Succeeded"
    assert {"RayService/search-v1", "ConfigMap/search-gateway", "PrometheusRule/search-slo"} <= set(end)
    if answer_lost:
        # An Event whose own write fails is left out: nothing waits for it.
        assert told == said
