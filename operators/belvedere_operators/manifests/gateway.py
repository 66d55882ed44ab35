"""The route of a ModelService, as the ConfigMap that the gateway watches."""

from __future__ import annotations

import json
from collections.abc import Mapping

from belvedere_operators.manifests.ownership import child_metadata, service_labels
from belvedere_platform.resources.gateway_route import GatewayRoute, ShadowSampling, VersionWeight
from belvedere_platform.resources.model_service import ModelServiceSpec
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import CONFIG_MAP

ROUTE_KEY = "route.json"


def route_name(service: str) -> str:
    """Return the name of the ConfigMap with the route of a service."""
    return f"{service}-gateway"


def gateway_route(
    owner: Manifest, spec: ModelServiceSpec, *, weights: Mapping[str, int], shadow: tuple[str, str] | None = None
) -> Manifest:
    """Return the route ConfigMap. weights: percent by version, in order; shadow: (stable, candidate) when answers are compared."""
    assert sum(weights.values()) == 100, weights
    gate = spec.rollout.gates.asked().shadow
    sampling = None
    if shadow is not None and gate is not None:
        sampling = ShadowSampling(
            stable=shadow[0],
            candidate=shadow[1],
            percent=gate.sample_percent,
            minimum_cosine=gate.minimum_cosine,
        )
    service = owner["metadata"]["name"]
    route = GatewayRoute(
        namespace=owner["metadata"]["namespace"],
        service=service,
        routing=spec.routing,
        versions=tuple(VersionWeight(version=version, weight=weight) for version, weight in weights.items()),
        shadow=sampling,
    )
    text = json.dumps(route.model_dump(by_alias=True, mode="json", exclude_none=True), sort_keys=True)
    return {
        "apiVersion": CONFIG_MAP.api_version,
        "kind": CONFIG_MAP.kind,
        "metadata": child_metadata(owner, route_name(service), service_labels(service)),
        "data": {ROUTE_KEY: text},
    }
