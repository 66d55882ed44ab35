"""GatewayRoute: all that the gateway needs to know of a ModelService (ConfigMap `{service}-gateway`, key `route.json`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from belvedere_platform.resources.base import Name, Part
from belvedere_platform.resources.model_service import Routing


class VersionWeight(Part):
    """One version and its share of the requests; the weights of a route add up to 100."""

    version: Name
    weight: Annotated[int, Field(ge=0, le=100)]


class ShadowSampling(Part):
    """A sampled share of the stable version's requests is answered by the candidate too, and compared."""

    stable: Name
    candidate: Name
    percent: Annotated[float, Field(gt=0, le=100)]
    minimum_cosine: float


class GatewayRoute(Part):
    """Where the requests of one service go."""

    namespace: Name
    service: Name
    routing: Routing = Routing()
    versions: Annotated[tuple[VersionWeight, ...], Field(min_length=1, max_length=8)]
    shadow: ShadowSampling | None = None
