"""How the requests of a service are shared among its versions, given which of them have replicas."""

from __future__ import annotations

from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.world import World


def effective_weights(world: World, route: GatewayRoute, protocol: str) -> dict[str, int]:
    """Return the percent of new requests for each version that gets any; they add up to 100, or there are none.

    A version without a replica gets nothing, and its share goes to the others in proportion. A version of weight zero
    stays at zero even when it alone has replicas: it may be one that was found to be wrong, and only the delivery can tell.
    """
    wanted = {
        version.version: version.weight
        for version in route.versions
        if version.weight > 0 and world.routable((route.namespace, route.service, version.version), protocol)
    }
    return _scale_to_hundred(wanted)


def _scale_to_hundred(weights: dict[str, int]) -> dict[str, int]:
    """Scale whole weights to a sum of 100 by largest remainder; what is above zero stays above zero, since the sum is at most 100."""
    total = sum(weights.values())
    if total == 0:
        return {}
    scaled = {name: weight * 100 // total for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(weights[name] * 100 % total), name))
    for name in by_remainder[: 100 - sum(scaled.values())]:
        scaled[name] += 1
    return scaled
