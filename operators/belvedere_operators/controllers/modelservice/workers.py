"""Carry a changed number of replicas to the RayCluster of a RayService, which KubeRay compares in everything but that.

KubeRay leaves the size of a running cluster to Ray's autoscaler, and a RayService that asks for more workers gets none.
Where nothing tells of a RayCluster, nothing is done.
"""

from __future__ import annotations

from collections.abc import Mapping

from belvedere_platform.errors import NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import RAY_CLUSTER

SIZE = ("replicas", "minReplicas", "maxReplicas")


def outgrown(wanted: Manifest, found: Manifest | None) -> str | None:
    """Return the name of the RayCluster that has another number of workers than wanted, None when there is none."""
    if found is None or "rayClusterConfig" not in wanted["spec"]:
        return None
    active = (found.get("status") or {}).get("activeServiceStatus") or {}
    has = (active.get("rayClusterStatus") or {}).get("desiredWorkerReplicas")
    asked = sum(group["replicas"] for group in wanted["spec"]["rayClusterConfig"]["workerGroupSpecs"])
    return active.get("rayClusterName") if has is not None and has != asked else None


def resized(cluster: Manifest, wanted: Manifest) -> Manifest:
    """Return what to apply to the RayCluster: its own worker groups, with the sizes that the RayService asks for."""
    sizes: Mapping[str, Mapping[str, object]] = {
        group["groupName"]: {key: group[key] for key in SIZE}
        for group in wanted["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    }
    groups = [{**group, **sizes.get(group["groupName"], {})} for group in cluster["spec"]["workerGroupSpecs"]]
    return {
        "apiVersion": RAY_CLUSTER.api_version,
        "kind": RAY_CLUSTER.kind,
        "metadata": {"name": cluster["metadata"]["name"], "namespace": cluster["metadata"]["namespace"]},
        "spec": {"workerGroupSpecs": groups},
    }


async def resize(store: ObjectStore, wanted: Manifest, found: Manifest | None, *, field_manager: str) -> None:
    """Give a RayService's cluster the number of workers that is wanted, if it has another."""
    name = outgrown(wanted, found)
    if name is None:
        return
    try:
        cluster = await store.get(RAY_CLUSTER, name, wanted["metadata"]["namespace"])
    except NotFound:
        return  # KubeRay is about to replace it, and makes the next one in the right size
    await store.apply(resized(cluster, wanted), field_manager=field_manager)
