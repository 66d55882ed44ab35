"""Ask a Ray dashboard about Serve, once for all RayServices that share it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from belvedere_operators.runtime import Clock
from belvedere_platform.errors import Unavailable

# RayServices on one machine share a Ray; they look at about the same time, and one answer is enough for all.
SHARED_SECONDS = 0.5


class Dashboards:
    """The dashboards that RayServices name, with the last answer of each."""

    def __init__(self, http: httpx.AsyncClient, clock: Clock) -> None:
        self._http, self._clock = http, clock
        self._answers: dict[str, tuple[float, asyncio.Task[dict[str, Any]]]] = {}

    async def serve_details(self, address: str) -> dict[str, Any]:
        """Return what Serve says of itself. Raises Unavailable."""
        now = self._clock.monotonic()
        asked = self._answers.get(address)
        if asked is None or now - asked[0] > SHARED_SECONDS:
            asked = (now, asyncio.create_task(self._fetch(address)))
            self._answers[address] = asked
        # One reader that is cancelled must not cancel the question for the others.
        return await asyncio.shield(asked[1])

    async def _fetch(self, address: str) -> dict[str, Any]:
        url = f"http://{address}/api/serve/applications/"
        try:
            response = await self._http.get(url, headers={"Accept": "application/json"})
            response.raise_for_status()
            details: dict[str, Any] = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"the Ray dashboard at {url} does not answer: {type(error).__name__} {error}") from error
        return details


def dashboard_address(ray_service: dict[str, Any]) -> str | None:
    """Return host and port of a RayService's dashboard, once its status names them."""
    cluster = ray_service.get("status", {}).get("activeServiceStatus", {}).get("rayClusterStatus", {})
    host = cluster.get("head", {}).get("serviceIP")
    port = cluster.get("endpoints", {}).get("dashboard")
    return f"{host}:{port}" if host and port else None


def application_names(ray_service: dict[str, Any]) -> list[str]:
    """Return the Serve applications of a RayService, as its status names them."""
    return sorted(ray_service.get("status", {}).get("activeServiceStatus", {}).get("applicationStatuses") or {})
