"""Reconcile the EndpointSlices of RayServices, about once a second while one is up, less often when there are many."""

from __future__ import annotations

import logging

from belvedere_operators.controllers.context import Context
from belvedere_operators.controllers.endpoints.dashboard import Dashboards, application_names, dashboard_address
from belvedere_operators.controllers.endpoints.decide import (
    RAY_SERVICE_LABEL,
    SERVICE_LABEL,
    Decision,
    decide,
    is_ready,
    replicas_asked,
)
from belvedere_operators.controllers.endpoints.replicas import controller_of, replicas_of
from belvedere_operators.controllers.reading import find_standing
from belvedere_operators.manifests.ownership import MANAGED_BY
from belvedere_operators.runtime import After, Controller, Key, Watched, label_keys
from belvedere_platform.errors import NotFound, Unavailable
from belvedere_platform.store import Manifest
from belvedere_platform.store.kinds import ENDPOINT_SLICE, RAY_SERVICE

log = logging.getLogger(__name__)

FIELD_MANAGER = "belvedere-endpoints"
SHORTEST_POLL_SECONDS = 1.0
POLLS_PER_SECOND = 60.0
SETTLED_POLLS_PER_SECOND = 25.0
"""How many dashboards are asked in a second: of all services whose replicas are missing, and of all others.

A replica that goes is not waited for that long: KubeRay changes the RayService's status, and Envoy finds out by itself.
"""


class EndpointsReconciler:
    """Joins the steps for one RayService."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._dashboards = Dashboards(context.http, context.clock)
        self._silent: set[Key] = set()
        self._seen: set[Key] = set()
        self._missing: set[Key] = set()
        """Whose replicas are not all there: the fewer wait, the sooner each is looked at again."""

    async def reconcile(self, key: Key) -> After | None:
        """Make the slices of one RayService what its replicas are now. Owner references remove them with it."""
        ray_service = await find_standing(self._context.store, RAY_SERVICE, key)
        if ray_service is None or SERVICE_LABEL not in ray_service["metadata"].get("labels", {}):
            for known in (self._silent, self._seen, self._missing):
                known.discard(key)
            return None
        polled = len(self._context.caches.of(RAY_SERVICE, MANAGED_BY))
        if key not in self._seen:
            self._seen.add(key)
            if await self._stood(key, ray_service):
                # Replicas that were all there before this process was are looked at in their turn, or a start would
                # ask every dashboard at once.
                return After(key.turn * max(SHORTEST_POLL_SECONDS, polled / SETTLED_POLLS_PER_SECOND))
        decision = await self._decide(key, ray_service)
        if decision is not None:
            await self._apply(key, decision)
        settled = decision is not None and not decision.changes and decision.num_ready >= replicas_asked(ray_service)
        (self._missing.discard if settled else self._missing.add)(key)
        turn = polled / SETTLED_POLLS_PER_SECOND if settled else len(self._missing) / POLLS_PER_SECOND
        return After(max(SHORTEST_POLL_SECONDS, turn))

    async def _stood(self, key: Key, ray_service: Manifest) -> bool:
        existing = await self._context.store.list(ENDPOINT_SLICE, key.namespace, labels={RAY_SERVICE_LABEL: key.name})
        return sum(map(is_ready, existing.items)) >= replicas_asked(ray_service) > 0

    async def _decide(self, key: Key, ray_service: Manifest) -> Decision | None:
        address = dashboard_address(ray_service)
        if address is None:
            return None
        try:
            details = await self._dashboards.serve_details(address)
        except Unavailable as error:
            # Replicas answer without their dashboard: what is known stays, and Envoy finds out what is dead.
            if key not in self._silent:
                log.warning("the replicas of RayService %s cannot be seen: %s", key, error)
            self._silent.add(key)
            return None
        self._silent.discard(key)
        existing = await self._context.store.list(ENDPOINT_SLICE, key.namespace, labels={RAY_SERVICE_LABEL: key.name})
        found = replicas_of(details, application_names(ray_service))
        return decide(ray_service, found, existing.items, controller_of(details))

    async def _apply(self, key: Key, decision: Decision) -> None:
        for one in decision.apply:
            await self._context.store.apply(one, field_manager=FIELD_MANAGER)
        for name in decision.remove:
            try:
                await self._context.store.delete(ENDPOINT_SLICE, name, key.namespace)
            except NotFound:
                continue


def endpoints_controller(context: Context) -> Controller:
    """Return the controller of the replicas' addresses."""
    return Controller(
        name="endpoints",
        kind=RAY_SERVICE,
        reconcile=EndpointsReconciler(context).reconcile,
        caches=context.caches,
        clock=context.clock,
        labels=MANAGED_BY,
        watched=(Watched(kind=ENDPOINT_SLICE, keys=label_keys(RAY_SERVICE_LABEL), labels=MANAGED_BY),),
        workers=max(4, context.settings.workers),
    )
