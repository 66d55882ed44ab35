"""The object store of one machine: one SQLite file, any number of processes, Kubernetes' semantics."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from belvedere_platform.errors import Conflict, InvalidInput, NotFound
from belvedere_platform.resources import validation
from belvedere_platform.store import admission, records
from belvedere_platform.store.database import Database, transaction
from belvedere_platform.store.deletion import Deletion
from belvedere_platform.store.fields import apply_fields, present
from belvedere_platform.store.kinds import EVENT, Kind
from belvedere_platform.store.protocol import Listing, Manifest, Propagation, WatchEvent
from belvedere_platform.store.records import Record
from belvedere_platform.store.watching import Pulse, watch_events

BOOKMARK_SECONDS = 30.0
EVENT_LIFETIME = timedelta(days=1)
EXPIRE_EVERY = 16
"""About so many writes of an Event go by between two looks for old ones."""
T = TypeVar("T")


def _now() -> datetime:
    return datetime.now(UTC)


class EmbeddedStore:
    """Implements ObjectStore. Use one instance in one event loop; other processes open the same file."""

    def __init__(
        self,
        path: Path | str,
        *,
        clock: Callable[[], datetime] = _now,
        events_kept: int = records.EVENTS_KEPT,
        bookmark_seconds: float = BOOKMARK_SECONDS,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._events_kept = events_kept
        self._bookmark_seconds = bookmark_seconds
        self._database = Database(self.path)
        self._pulse = Pulse(self._database)

    async def get(self, kind: Kind, name: str, namespace: str) -> Manifest:
        """Return the object. Raises NotFound."""
        place = namespace if kind.namespaced else ""
        record = await self._database.read(
            lambda connection: records.find(connection, records.kind_key(kind), place, name)
        )
        if record is None:
            raise _not_found(kind, name, namespace)
        return record.manifest

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        not_older_than: str | None = None,
    ) -> Listing:
        """Return the objects of a kind, of all namespaces when none is given: always as they are now."""

        def read(connection: sqlite3.Connection) -> Listing:
            items = records.bodies(connection, records.kind_key(kind), namespace)
            return Listing(
                items=[item for item in items if records.matches(item["metadata"].get("labels"), labels)],
                resource_version=str(records.current_version(connection)),
            )

        return await self._database.read(read)

    async def watch(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        resource_version: str,
        labels: Mapping[str, str] | None = None,
    ) -> AsyncIterator[WatchEvent]:
        """Yield the changes after a resource version, with bookmarks. Raises Gone when that version is no longer known."""
        events = watch_events(
            self._database,
            self._pulse,
            kind=records.kind_key(kind),
            namespace=namespace,
            labels=labels,
            resource_version=resource_version,
            bookmark_seconds=self._bookmark_seconds,
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def apply(self, manifest: Manifest, *, field_manager: str, force: bool = True) -> Manifest:
        """Create the object or merge the fields given. Raises Conflict and InvalidInput."""
        return await self._write(
            lambda connection: self._apply(connection, manifest, field_manager, force=force, status=False)
        )

    async def apply_status(self, manifest: Manifest, *, field_manager: str) -> Manifest:
        """Apply `status` alone. Raises NotFound, Conflict and InvalidInput."""
        return await self._write(
            lambda connection: self._apply(connection, manifest, field_manager, force=True, status=True)
        )

    async def delete(
        self,
        kind: Kind,
        name: str,
        namespace: str,
        *,
        propagation: Propagation = "Background",
        resource_version: str | None = None,
    ) -> None:
        """Delete the object and, unless orphaned, what it owns. Finalizers hold it back. Raises NotFound and Conflict."""

        def act(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                place = namespace if kind.namespaced else ""
                record = records.find(connection, records.kind_key(kind), place, name)
                if record is None:
                    raise _not_found(kind, name, namespace)
                _check_version(record, resource_version)
                self._deletion(connection).delete(record, propagation)

        await self._write(act)

    async def close(self) -> None:
        """End the watches and close the file."""
        self._pulse.stop()
        await self._database.close()

    async def _write(self, action: Callable[[sqlite3.Connection], T]) -> T:
        result = await self._database.write(action)
        self._pulse.nudge()
        return result

    def _deletion(self, connection: sqlite3.Connection) -> Deletion:
        return Deletion(connection, clock=self._clock, events_kept=self._events_kept)

    def _apply(
        self, connection: sqlite3.Connection, manifest: Manifest, manager: str, *, force: bool, status: bool
    ) -> Manifest:
        if not field_manager_is_valid(manager):
            raise InvalidInput(f"the field manager is {manager!r}; it must have 1 to 128 printable characters")
        kind = admission.kind_of(manifest)
        namespace, name = admission.identity(manifest, kind)

        def merged() -> tuple[Record | None, Record]:
            before = records.find(connection, records.kind_key(kind), namespace, name)
            if before is None and status:
                raise _not_found(kind, name, namespace)
            return before, self._merged(before, manifest, kind, namespace, manager, force=force, status=status)

        # Merged once without the write lock, so that an apply that changes nothing keeps nobody waiting.
        before, after = merged()
        if after == before:
            return after.manifest
        with transaction(connection):
            latest = records.find(connection, records.kind_key(kind), namespace, name)
            if latest != before:
                before, after = merged()
                if after == before:
                    return after.manifest
            written = records.put(connection, after, before, events_kept=self._events_kept)
            deletion = self._deletion(connection)
            deletion.settle(written)
            if kind == EVENT and written.version % EXPIRE_EVERY == 0:
                deletion.expire(written.kind, self._clock() - EVENT_LIFETIME)
        return written.manifest

    def _merged(
        self,
        before: Record | None,
        manifest: Manifest,
        kind: Kind,
        namespace: str,
        manager: str,
        *,
        force: bool,
        status: bool,
    ) -> Record:
        """Return the object as it should be stored; equal to what is there when nothing changes."""
        given = manifest["metadata"]
        config = admission.config_of(manifest, status=status)
        if before is None:
            if given.get("resourceVersion") or given.get("uid"):
                raise Conflict(
                    f"{kind.kind} {given['name']} has a resourceVersion or uid but does not exist: leave them out to create it"
                )
            before_manifest = self._new(kind, namespace, given["name"])
            owned: Mapping[str, frozenset[tuple[str, ...]]] = {}
        else:
            _check_version(before, given.get("resourceVersion"))
            if given.get("uid") not in (None, before.uid):
                raise Conflict(f"{kind.kind} {before.name} has uid {before.uid}, not {given['uid']}: it was made anew")
            before_manifest, owned = before.manifest, before.owned
        after, owned_after = apply_fields(
            before_manifest, config, owned=owned, manager=f"{manager}:{'status' if status else ''}", force=force
        )
        after = _admitted(after, None if before is None else before.manifest)
        record = Record(
            kind=records.kind_key(kind),
            namespace=namespace,
            name=given["name"],
            uid=after["metadata"]["uid"],
            version=0 if before is None else before.version,
            manifest=after,
            owned=present(owned_after, after),
        )
        changed = before is not None and admission.wants(after) != admission.wants(before.manifest)
        return _next_generation(record) if changed and "generation" in after["metadata"] else record

    def _new(self, kind: Kind, namespace: str, name: str) -> Manifest:
        metadata: Manifest = {"name": name}
        if kind.namespaced:
            metadata["namespace"] = namespace
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if kind.kind not in admission.WITHOUT_GENERATION:
            metadata["generation"] = 1
        return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}


def field_manager_is_valid(manager: str) -> bool:
    """Return whether a field manager's name is one that Kubernetes takes too."""
    return 0 < len(manager) <= 128 and manager.isprintable() and ":" not in manager


def _admitted(after: Manifest, before: Manifest | None) -> Manifest:
    """Return the object with its defaults. Raises InvalidInput for one that its schema refuses."""
    if before is not None and before["metadata"].get("deletionTimestamp"):
        added = set(after["metadata"].get("finalizers", ())) - set(before["metadata"].get("finalizers", ()))
        if added:
            raise InvalidInput(f"metadata.finalizers adds {sorted(added)[0]} to an object that is being deleted")
    return validation.admit(after, before)


def _check_version(record: Record, resource_version: str | None) -> None:
    if resource_version not in (None, "", str(record.version)):
        raise Conflict(
            f"{record.manifest['kind']} {record.name} has resourceVersion {record.version}, not {resource_version}: "
            "it was changed meanwhile, read it again"
        )


def _not_found(kind: Kind, name: str, namespace: str) -> NotFound:
    return NotFound(f"{kind.kind} {namespace}/{name} does not exist")


def _next_generation(record: Record) -> Record:
    metadata = record.manifest["metadata"]
    return replace(
        record, manifest={**record.manifest, "metadata": {**metadata, "generation": metadata["generation"] + 1}}
    )
