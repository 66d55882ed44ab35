"""Everything that the controllers write, on a real API server: accepted whole, and a second write changes nothing."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from belvedere_operators.manifests.autoscaler import autoscaler
from belvedere_operators.manifests.enginejob import engine_job
from belvedere_operators.manifests.gateway import gateway_route
from belvedere_operators.manifests.network import NetworkPeers, network_policy
from belvedere_operators.manifests.pods import PodSettings
from belvedere_operators.manifests.prometheusrule import prometheus_rule
from belvedere_operators.manifests.raycluster import HeadStore
from belvedere_operators.manifests.rayjob import ray_job
from belvedere_operators.manifests.rayservice import ray_service
from belvedere_operators.runtime.clock import SystemClock
from belvedere_operators.runtime.events import EventRecorder
from belvedere_platform.errors import InvalidInput, NotInstalled
from belvedere_platform.resources import Engine, ModelService, TrainingRun
from belvedere_platform.store import Kind, Manifest
from belvedere_platform.store.kinds import EVENT, SCALED_OBJECT
from belvedere_platform.store.kubernetes import KubernetesStore

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

DIGEST = "sha256:" + "b" * 64
PODS = PodSettings(
    image="belvedere:1",
    environment={"BELVEDERE_ARTIFACTS": "s3://artifacts", "BELVEDERE_STORE": "kubernetes://"},
    head_store=HeadStore(address="rediss://redis:6379", password=("redis", "password")),
)
SPECS = {
    "ModelService": {"model": "clip", "version": "v1", "rollout": {"gates": {"shadow": {}}}},
    "TrainingRun": {"model": "clip", "data": {"dataset": "emoji"}, "optimization": {"pairs": 1000}},
    "Engine": {"modelVersion": "v1"},
}


@pytest.fixture
async def store(kubeconfig: Path) -> AsyncIterator[KubernetesStore]:
    """The store of the real API server."""
    opened = KubernetesStore(kubeconfig=str(kubeconfig))
    yield opened
    await opened.close()


def scaled_by(kind: str) -> Manifest:
    return {"maxReplicas": 4, "autoscaler": {"kind": kind, "minReplicas": 2}}


def of_service(owner: Manifest, child: str) -> Manifest:
    spec = ModelService.model_validate(owner).spec
    if child == "RayService":
        return ray_service(owner, spec, version="v2", engine_digest=DIGEST, replicas=2, pods=PODS)
    if child in ("HorizontalPodAutoscaler", "ScaledObject"):
        asked = ModelService.model_validate({**owner, "spec": {**owner["spec"], "scaling": scaled_by(child)}}).spec
        made = autoscaler(owner, asked, prometheus_url="http://prometheus:9090")
        assert made is not None
        return made
    if child == "NetworkPolicy":
        somewhere = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}
        return network_policy(owner, NetworkPeers(operator=(somewhere,), monitoring=(somewhere,)))
    if child == "PrometheusRule":
        return prometheus_rule(owner, spec, stable="v1", candidate="v2")
    return gateway_route(owner, spec, weights={"v1": 95, "v2": 5}, shadow=("v1", "v2"))


def of_run(owner: Manifest, child: str) -> Manifest:
    return ray_job(
        TrainingRun.model_validate(owner).spec,
        metadata=owner["metadata"],
        attempt=1,
        data_digest=DIGEST,
        parent_digest=None,
        pods=PODS,
    )


def of_engine(owner: Manifest, child: str) -> Manifest:
    return engine_job(
        Engine.model_validate(owner).spec,
        metadata=owner["metadata"],
        model_digest=DIGEST,
        tag="engines/x",
        pods=PODS,
    )


@pytest.mark.parametrize(
    ("owner_kind", "child", "build"),
    [
        ("ModelService", "RayService", of_service),
        ("ModelService", "PrometheusRule", of_service),
        ("ModelService", "ConfigMap", of_service),
        ("ModelService", "NetworkPolicy", of_service),
        ("ModelService", "HorizontalPodAutoscaler", of_service),
        ("ModelService", "ScaledObject", of_service),
        ("TrainingRun", "RayJob", of_run),
        ("Engine", "Job", of_engine),
    ],
)
async def test_a_child_is_accepted_and_written_once(
    store: KubernetesStore,
    namespace: str,
    owner_kind: str,
    child: str,
    build: Callable[[Manifest, str], Manifest],
) -> None:
    owner = await store.apply(
        {
            "apiVersion": "belvedere.dev/v1alpha1",
            "kind": owner_kind,
            "metadata": {"name": "owner", "namespace": namespace},
            "spec": SPECS[owner_kind],
        },
        field_manager="test",
    )
    manifest = build(owner, child)
    assert manifest["kind"] == child
    if child == "ScaledObject":
        await _needs(store, SCALED_OBJECT)
    first = await store.apply(manifest, field_manager="belvedere-test")
    again = await store.apply(build(owner, child), field_manager="belvedere-test")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def _needs(store: KubernetesStore, kind: Kind) -> None:
    try:
        await store.list(kind, "default")
    except NotInstalled:
        pytest.skip(f"the definition of {kind.kind} is not there: make control-plane")


async def test_bounds_of_an_autoscaler_that_contradict_each_other_are_refused(
    store: KubernetesStore, namespace: str
) -> None:
    spec = {**SPECS["ModelService"], "scaling": {"autoscaler": {"kind": "ScaledObject", "minReplicas": 3}}}
    body = {"apiVersion": "belvedere.dev/v1alpha1", "kind": "ModelService", "spec": spec}
    with pytest.raises(InvalidInput, match=r"scaling\.autoscaler\.minReplicas must not be greater than"):
        await store.apply({**body, "metadata": {"name": "owner", "namespace": namespace}}, field_manager="test")


async def test_what_runs_is_written_again_as_it_was_read(store: KubernetesStore, namespace: str) -> None:
    metadata = {"name": "owner", "namespace": namespace}
    body = {"apiVersion": "belvedere.dev/v1alpha1", "kind": "ModelService", "metadata": metadata}
    owner = await store.apply({**body, "spec": SPECS["ModelService"]}, field_manager="test")
    spec = ModelService.model_validate(owner).spec
    given = {"version": "v2", "engine_digest": DIGEST, "replicas": 2}
    built = ray_service(owner, spec, pods=PODS, **given)
    first = await store.apply(built, field_manager="belvedere-test")
    assert first["spec"] == built["spec"]
    later = ray_service(owner, spec, pods=PodSettings(image="belvedere:2"), running=first, **given)
    again = await store.apply(later, field_manager="belvedere-test")
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_an_event_is_accepted_and_counted(store: KubernetesStore, namespace: str) -> None:
    about = {
        "apiVersion": "belvedere.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": "owner", "namespace": namespace, "uid": str(uuid.uuid4())},
    }
    recorder = EventRecorder(store, clock=SystemClock(), component="belvedere-test")
    for _ in range(2):
        await recorder.record(about, "Normal", "Promoted", "version v2 was promoted")
    (event,) = (await store.list(EVENT, namespace)).items
    assert (event["reason"], event["count"]) == ("Promoted", 2)
