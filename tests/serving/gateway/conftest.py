"""Routes and replicas to build worlds from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_serving.gateway.world import Replica, World


def make_route(weights: dict[str, int], *, service: str = "emoji", **fields: Any) -> GatewayRoute:
    versions = [{"version": version, "weight": weight} for version, weight in weights.items()]
    document = {"namespace": "default", "service": service, "versions": versions, **fields}
    return GatewayRoute.model_validate(document)


def make_world(*routes: GatewayRoute, replicas: dict[str, list[Replica]]) -> World:
    """A world in which every service has these replicas by version."""
    return World(
        routes={(route.namespace, route.service): route for route in routes},
        replicas={
            (route.namespace, route.service, version): tuple(sorted(found))
            for route in routes
            for version, found in replicas.items()
        },
    )


def make_replica(number: int = 1, **fields: Any) -> Replica:
    return Replica(**{"address": f"10.0.0.{number}", "http_port": 8000, "grpc_port": 9000, **fields})


@pytest.fixture
def route() -> Callable[..., GatewayRoute]:
    return make_route


@pytest.fixture
def world() -> Callable[..., World]:
    return make_world


@pytest.fixture
def replica() -> Callable[..., Replica]:
    return make_replica
