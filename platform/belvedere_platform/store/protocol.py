"""The object store that controllers, executors, the gateway and the command line share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from belvedere_platform.store.kinds import Kind

Manifest = dict[str, Any]
EventType = Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
Propagation = Literal["Background", "Foreground", "Orphan"]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Objects of one kind and the resource version from which a watch goes on without a gap."""

    items: list[Manifest]
    resource_version: str


@dataclass(frozen=True, kw_only=True)
class WatchEvent:
    """One change. A BOOKMARK's object has only `metadata.resourceVersion`."""

    type: EventType
    object: Manifest


class ObjectStore(Protocol):
    """Kubernetes' semantics for the calls that Belvedere makes. Errors: NotFound, Conflict, Gone, InvalidInput, Unavailable."""

    async def get(self, kind: Kind, name: str, namespace: str) -> Manifest:
        """Return the object. Raises NotFound."""
        ...

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        not_older_than: str | None = None,
    ) -> Listing:
        """Return the objects of a kind, of all namespaces when none is given.

        As they are now, or, when a resource version is given, as they were at that one or later, whichever costs less; at
        any time for `0`.
        """
        ...

    def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncIterator[WatchEvent]:
        """Yield the changes after a resource version, with bookmarks. Raises Gone when that version is no longer known."""
        ...

    async def apply(self, manifest: Manifest, *, field_manager: str, force: bool = True) -> Manifest:
        """Create the object or merge the fields given, as server-side apply does; fields this manager gave before and now leaves out are removed.

        A `metadata.resourceVersion` in the manifest must be the current one, else Conflict. Without a change nothing is written.
        """
        ...

    async def apply_status(self, manifest: Manifest, *, field_manager: str) -> Manifest:
        """Apply `status` alone. Raises NotFound when the object does not exist."""
        ...

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        *,
        propagation: Propagation = "Background",
        resource_version: str | None = None,
    ) -> None:
        """Delete the object and, unless orphaned, what it owns. Finalizers hold it back. Raises NotFound."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...
