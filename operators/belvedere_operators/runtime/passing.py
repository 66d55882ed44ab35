"""A store that passes each call on to another: what stands between the two overrides only what it changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import TypeVar

from belvedere_platform.store import Kind, Listing, Manifest, ObjectStore, WatchEvent
from belvedere_platform.store.admission import kind_of
from belvedere_platform.store.protocol import Propagation

T = TypeVar("T")


class PassingStore:
    """Implements ObjectStore by another one. Every call goes through `_passed`, every watch through `_watches`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def get(self, kind: Kind, name: str, namespace: str) -> Manifest:
        """Return the object. Raises NotFound."""
        return await self._passed("get", kind, self._store.get(kind, name, namespace))

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        not_older_than: str | None = None,
    ) -> Listing:
        """Return the objects of a kind."""
        call = self._store.list(kind, namespace, labels=labels, not_older_than=not_older_than)
        return await self._passed("list", kind, call)

    def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncIterator[WatchEvent]:
        """Yield the changes after a resource version."""
        self._watches(kind)
        return self._store.watch(kind, namespace, resource_version=resource_version, labels=labels)

    async def apply(self, manifest: Manifest, *, field_manager: str, force: bool = True) -> Manifest:
        """Create the object or merge the fields given."""
        call = self._store.apply(manifest, field_manager=field_manager, force=force)
        return await self._passed("apply", kind_of(manifest), call)

    async def apply_status(self, manifest: Manifest, *, field_manager: str) -> Manifest:
        """Apply `status` alone."""
        call = self._store.apply_status(manifest, field_manager=field_manager)
        return await self._passed("apply_status", kind_of(manifest), call)

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        *,
        propagation: Propagation = "Background",
        resource_version: str | None = None,
    ) -> None:
        """Delete the object."""
        call = self._store.delete(kind, name, namespace, propagation=propagation, resource_version=resource_version)
        await self._passed("delete", kind, call)

    async def close(self) -> None:
        """Release connections."""
        await self._store.close()

    async def _passed(self, verb: str, kind: Kind, call: Awaitable[T]) -> T:
        return await call

    def _watches(self, kind: Kind) -> None:
        """Hear that a watch begins."""
