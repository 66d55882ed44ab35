"""The same random calls on the embedded store and on a real API server: the same answers, down to the refusals."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from belvedere_platform.errors import BelvedereError
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.kinds import CONFIG_MAP, MODEL_SERVICE, TRAINING_RUN

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 60


@pytest.fixture
async def stores(tmp_path: Path, kubeconfig: Path) -> AsyncIterator[tuple[ObjectStore, ObjectStore, str]]:
    """Both stores, and a namespace for both."""
    from kubernetes import client, config

    from belvedere_platform.store.kubernetes import KubernetesStore

    embedded, cluster = EmbeddedStore(tmp_path / "store.db"), KubernetesStore(kubeconfig=str(kubeconfig))
    with config.new_client_from_config(str(kubeconfig)) as api:
        namespaces = client.CoreV1Api(api)
        namespace = f"equivalence-{uuid.uuid4().hex[:8]}"
        await asyncio.to_thread(namespaces.create_namespace, {"metadata": {"name": namespace}})
        yield embedded, cluster, namespace
        await asyncio.to_thread(namespaces.delete_namespace, namespace)
    await embedded.close()
    await cluster.close()


def some(chance: Random, **choices: list[Any]) -> dict[str, Any]:
    """Return some of the fields, each with one of its values."""
    return {name: chance.choice(values) for name, values in choices.items() if chance.random() < 0.4}


def condition(type_: str, chance: Random) -> dict[str, Any]:
    return {
        "type": type_,
        "status": chance.choice(["True", "False"]),
        "reason": "Tested",
        **some(chance, message=["x", ""]),
    }


def training_run(chance: Random) -> dict[str, Any]:
    optimization = {"pairs": 1000, **some(chance, batchSize=[256, 1], seed=[0, None])}
    workers = some(chance, min=[1, 3, "two"], max=[2, 4], resources=[{}, {"cpu": 2}, {"memory": "1Gi"}])
    spec = some(chance, suspend=[True, False], version=["v1", "V1", None], workers=[workers, {}, None], wokers=[{}])
    if chance.random() < 0.8:
        spec.pop("wokers", None)
    gates = [
        {"metric": metric, "minimum": chance.choice([0, 0.5])} for metric in chance.sample("ab", chance.randrange(3))
    ]
    return {
        "model": "emoji",
        "data": {"dataset": "emoji"},
        "optimization": optimization,
        **spec,
        **some(chance, evaluation=[{"gates": gates}, {"everyPairs": 10}]),
    }


def model_service(chance: Random) -> dict[str, Any]:
    steps = [{"weight": chance.choice([5, 25, 50])} for _ in range(chance.randrange(1, 3))]
    gates = some(chance, errors=[None, {}, {"maximumRatio": 3}], shadow=[None, {}])
    rollout = some(chance, paused=[True, False], steps=[steps], gates=[gates, {}])
    scaling = some(chance, minReplicas=[1, 2], maxReplicas=[1, 2, 3])
    routing = some(chance, hosts=[["a"], ["a", "b"], []], default=[True], timeoutSeconds=[5, 2.5, 0])
    return {"model": "emoji", "version": "v1"} | some(
        chance, rollout=[rollout], scaling=[scaling], routing=[routing, {}]
    )


def status(chance: Random) -> dict[str, Any]:
    conditions = [condition(type_, chance) for type_ in chance.sample(["A", "B", "C"], chance.randrange(4))]
    # Never empty: a status without a field is null to the API server, which then refuses it.
    return {"observedGeneration": chance.choice([1, 2])} | some(chance, conditions=[conditions])


def manifest(kind: Any, chance: Random, namespace: str) -> Manifest:
    labels = {name: chance.choice("12") for name in chance.sample("ab", chance.randrange(3))}
    finalizers = [f"belvedere.dev/{name}" for name in chance.sample("xy", chance.randrange(3))]
    metadata = {"name": chance.choice(["one", "two"]), "namespace": namespace}
    metadata |= some(chance, labels=[labels], finalizers=[finalizers], annotations=[{"note": "1"}, {"note": "2"}, {}])
    result: Manifest = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}
    if kind == CONFIG_MAP:
        # Never an empty map: who gave one owns "no field at all", which the embedded store does not tell from nothing.
        return result | {"data": {"x": chance.choice("12")} | some(chance, y=["1", ""], z=["3"])}
    return result | {"spec": training_run(chance) if kind == TRAINING_RUN else model_service(chance)}


async def outcome(call: Any) -> Any:
    """Return what a call gave without what the server makes up, or the kind of its refusal."""
    try:
        answer = await call
    except BelvedereError as error:
        return type(error).__name__, str(error)
    return comparable(answer) if answer is not None else None


def comparable(answer: Manifest) -> Manifest:
    metadata = {
        name: value
        for name, value in answer["metadata"].items()
        if name in ("name", "labels", "annotations", "generation", "finalizers") and value
    }
    metadata["finalizers"] = sorted(metadata.get("finalizers", []))
    if answer["kind"] == "ConfigMap":
        metadata.pop("generation", None)
    parts = {name: answer[name] for name in ("spec", "status", "data") if answer.get(name)}
    # No conditions and an empty list of them say the same, and which of them is left depends on the order of the calls.
    if not parts.get("status", {}).get("conditions", True):
        parts["status"] = {name: value for name, value in parts["status"].items() if name != "conditions"}
    if "conditions" in parts.get("status", {}):
        conditions = sorted(parts["status"]["conditions"], key=lambda found: found["type"])
        parts["status"] = {**parts["status"], "conditions": conditions}
    return {"metadata": metadata, "deleting": "deletionTimestamp" in answer["metadata"], **parts}


def step(store: ObjectStore, chance: Random, namespace: str) -> Any:
    """Return one random call. The same generator makes the same call on either store."""
    kind = chance.choice([CONFIG_MAP, TRAINING_RUN, MODEL_SERVICE])
    manager = chance.choice(["one", "two"])
    verb = chance.choices(["apply", "status", "delete", "get"], [10, 5, 1, 1])[0]
    given = manifest(kind, chance, namespace)
    name = given["metadata"]["name"]
    if verb == "apply":
        return store.apply(given, field_manager=manager, force=chance.random() < 0.8)
    if verb == "status" and kind != CONFIG_MAP:
        return store.apply_status(given | {"status": status(chance)}, field_manager=manager)
    if verb == "delete":
        return store.delete(kind, name, namespace)
    return store.get(kind, name, namespace)


@pytest.mark.parametrize("seed", range(6))
async def test_both_answer_alike(stores: tuple[ObjectStore, ObjectStore, str], seed: int) -> None:
    embedded, cluster, namespace = stores
    for number in range(STEPS):
        ours = await outcome(step(embedded, Random(f"{seed}/{number}"), namespace))
        theirs = await outcome(step(cluster, Random(f"{seed}/{number}"), namespace))
        if isinstance(ours, tuple) and isinstance(theirs, tuple):
            assert ours[0] == theirs[0], f"step {number}: {ours[1]} | {theirs[1]}"
        else:
            assert ours == theirs, f"step {number}"
