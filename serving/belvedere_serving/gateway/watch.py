"""Follows the routes and replicas in the object store, and says when the world has changed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from belvedere_platform.errors import BelvedereError, Gone, InvalidInput
from belvedere_platform.resources.gateway_route import GatewayRoute
from belvedere_platform.store.kinds import CONFIG_MAP, ENDPOINT_SLICE, Kind
from belvedere_platform.store.protocol import Manifest, ObjectStore
from belvedere_serving.gateway.world import (
    ROUTE_KEY,
    SERVICE_LABEL,
    Replica,
    ServiceKey,
    VersionKey,
    World,
    gather_replicas,
    read_replicas,
    read_route,
)

log = logging.getLogger(__name__)

ObjectKey = tuple[str, str]
_RETRY_SECONDS = 1.0
_MANAGED = {"app.kubernetes.io/managed-by": "belvedere"}


@dataclass(kw_only=True)
class Observed:
    """The stored objects, as far as they are known, and the last good reading of each."""

    routes: dict[ObjectKey, GatewayRoute] = field(default_factory=dict)
    rejected: dict[ObjectKey, str] = field(default_factory=dict)
    """Why the newest text of an object is not used."""
    replicas: dict[ObjectKey, tuple[tuple[VersionKey, Replica], ...]] = field(default_factory=dict)
    remembered: dict[ObjectKey, GatewayRoute] = field(default_factory=dict)
    """Last good routes from before this process started."""

    def replace_all(self, kind: Kind, items: list[Manifest], namespace: str | None = None) -> None:
        """Take a full listing, of one namespace if given: what is not in it is gone."""
        present = {_key(item) for item in items}
        for key in set(self.routes if kind == CONFIG_MAP else self.replicas) - present:
            if namespace in (None, key[0]):
                self.forget(kind, key)
        for item in items:
            self.take(kind, item)

    def take(self, kind: Kind, item: Manifest) -> None:
        """Take the newest text of an object. One that cannot be read leaves the last good reading in place."""
        key = _key(item)
        try:
            if kind == ENDPOINT_SLICE:
                self.replicas[key] = read_replicas(item)
            elif ROUTE_KEY in (item.get("data") or {}):
                self.routes[key] = read_route(item)
            else:
                self.forget(kind, key)
        except InvalidInput as error:
            if self.rejected.get(key) != str(error):
                log.error("not used, the last good one stays: %s", error)
            self.rejected[key] = str(error)
            if kind == CONFIG_MAP and key in self.remembered:
                self.routes.setdefault(key, self.remembered[key])
        else:
            self.rejected.pop(key, None)

    def forget(self, kind: Kind, key: ObjectKey) -> None:
        """Drop an object that was deleted."""
        self.rejected.pop(key, None)
        if kind == CONFIG_MAP:
            self.routes.pop(key, None)
        else:
            self.replicas.pop(key, None)

    def world(self) -> World:
        """Return what is known now as one value."""
        routes: dict[ServiceKey, GatewayRoute] = {}
        for key in sorted(self.routes):
            routes.setdefault((self.routes[key].namespace, self.routes[key].service), self.routes[key])
        return World(routes=routes, replicas=gather_replicas(one for found in self.replicas.values() for one in found))


class Watcher:
    """Keeps `Observed` current from both kinds and calls back after every change, once both were listed.

    namespaces: those to follow; all of them when none is given. on_silence: called when the store does not answer before
    everything was listed once.
    """

    def __init__(
        self,
        store: ObjectStore,
        observed: Observed,
        on_change: Callable[[], None],
        *,
        namespaces: Sequence[str] = (),
        on_silence: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._observed = observed
        self._on_change = on_change
        self._on_silence = on_silence
        self._sources = [
            (kind, namespace) for kind in (CONFIG_MAP, ENDPOINT_SLICE) for namespace in namespaces or (None,)
        ]
        self._listed: set[tuple[str, str | None]] = set()
        self._silent: set[tuple[str, str | None]] = set()

    @property
    def complete(self) -> bool:
        """Whether both kinds were listed: before that, a world would lack services that exist."""
        return len(self._listed) == len(self._sources)

    async def run(self) -> None:
        """Follow both kinds until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind, namespace in self._sources:
                group.create_task(self._follow(kind, namespace))

    async def _follow(self, kind: Kind, namespace: str | None) -> None:
        while True:
            try:
                await self._list_and_watch(kind, namespace)
            except Gone:
                continue  # the history went on without us: list again
            except BelvedereError as error:
                # Said once: at the edge a store may be away for days.
                if (kind.kind, namespace) not in self._silent:
                    log.warning(
                        "store does not answer, going on with what is known: kind=%s error=%s", kind.kind, error
                    )
                self._silent.add((kind.kind, namespace))
                if not self.complete:
                    self._on_silence()
                await asyncio.sleep(_RETRY_SECONDS)

    async def _list_and_watch(self, kind: Kind, namespace: str | None) -> None:
        listing = await self._store.list(kind, namespace, labels=_MANAGED)
        self._observed.replace_all(kind, [item for item in listing.items if _concerns_us(item)], namespace)
        self._listed.add((kind.kind, namespace))
        if (kind.kind, namespace) in self._silent:
            self._silent.discard((kind.kind, namespace))
            log.info("store answers again: kind=%s", kind.kind)
        self._changed()
        events = self._store.watch(kind, namespace, resource_version=listing.resource_version, labels=_MANAGED)
        async for event in events:
            if event.type == "BOOKMARK" or not _concerns_us(event.object):
                continue
            if event.type == "DELETED":
                self._observed.forget(kind, _key(event.object))
            else:
                self._observed.take(kind, event.object)
            self._changed()

    def _changed(self) -> None:
        if self.complete:
            self._on_change()


def _concerns_us(item: Mapping[str, Any]) -> bool:
    return SERVICE_LABEL in (item["metadata"].get("labels") or {})


def _key(item: Mapping[str, Any]) -> ObjectKey:
    return (item["metadata"]["namespace"], item["metadata"]["name"])
