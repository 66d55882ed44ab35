"""What stands beside the servers comes when it is asked for, follows what is asked, and goes when it is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from belvedere_operators.manifests.network import NetworkPeers
from belvedere_platform.store import Kind
from belvedere_platform.store.kinds import (
    HORIZONTAL_POD_AUTOSCALER,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    SCALED_OBJECT,
)

NAMESPACE = "default"


async def names(world: Any, kind: Kind) -> list[str]:
    return [one["metadata"]["name"] for one in (await world.store.list(kind, NAMESPACE)).items]


def scaling(least: int = 1, **autoscaler: Any) -> dict[str, Any]:
    return {"minReplicas": least, "maxReplicas": 3, **({"autoscaler": autoscaler} if autoscaler else {})}


async def test_pods_are_out_of_reach_as_long_as_the_installation_says_who_may_reach_them(serving: Any) -> None:
    assert await names(serving, NETWORK_POLICY) == []
    serving.settings = replace(serving.settings, network_peers=NetworkPeers())
    serving.use(serving.store)
    await serving.tick()
    assert await names(serving, NETWORK_POLICY) == ["search-replicas"]
    serving.settings = replace(serving.settings, network_peers=None)
    serving.use(serving.store)
    await serving.tick()
    assert await names(serving, NETWORK_POLICY) == []


async def test_a_service_has_the_one_autoscaler_that_it_asks_for(serving: Any) -> None:
    await serving.ask("v1", scaling=scaling(kind="HorizontalPodAutoscaler"))
    await serving.tick()
    assert await names(serving, HORIZONTAL_POD_AUTOSCALER) == ["search-replicas"]
    await serving.ask("v1", scaling=scaling(kind="ScaledObject"))
    await serving.tick()
    assert (await names(serving, HORIZONTAL_POD_AUTOSCALER), await names(serving, SCALED_OBJECT)) == (
        [],
        ["search-replicas"],
    )
    await serving.ask("v1", scaling={"maxReplicas": 1})
    await serving.tick()
    assert await names(serving, SCALED_OBJECT) == []
    assert await names(serving, POD_DISRUPTION_BUDGET) == []


async def test_with_an_autoscaler_there_are_as_many_replicas_as_it_says_whatever_is_measured(serving: Any) -> None:
    await serving.ask("v1", scaling=scaling(2, kind="ScaledObject"))
    await serving.run(2)
    assert await serving.replicas_of("v1") == 2
    await serving.fire("BelvedereOverload", "scaleOut")
    await serving.run(30)
    assert await serving.replicas_of("v1") == 2
    serving.traffic.in_flight = 0.0
    await serving.ask("v1", scaling=scaling(1, kind="ScaledObject"))
    await serving.run(2)
    assert await serving.replicas_of("v1") == 1
    # It is no change of what is rolled out.
    assert (await serving.status()).get("rollout") is None


async def test_an_autoscaler_that_the_cluster_does_not_know_is_named(serving: Any) -> None:
    serving.reconciler._context.caches.of(
        SCALED_OBJECT, {"app.kubernetes.io/managed-by": "belvedere"}, optional=True
    ).absent = True
    await serving.ask("v1", scaling=scaling(kind="ScaledObject"))
    await serving.tick()
    accepted = await serving.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "AutoscalerNotInstalled")
    assert accepted["message"].startswith("spec.scaling.autoscaler.kind is ScaledObject, and the cluster does not know")
    assert await names(serving, SCALED_OBJECT) == []
    assert await serving.weights() == {"v1": 100}
