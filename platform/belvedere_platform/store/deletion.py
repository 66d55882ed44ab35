"""Deleting an object of the embedded store, and what it owns: finalizers hold it back, other owners keep a child."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from belvedere_platform.store import records
from belvedere_platform.store.fields import item_element
from belvedere_platform.store.protocol import Manifest, Propagation
from belvedere_platform.store.records import Record

FOREGROUND = "foregroundDeletion"


class Deletion:
    """Deletes inside one transaction. What Kubernetes' garbage collector does soon after has happened when it commits."""

    def __init__(self, connection: sqlite3.Connection, *, clock: Callable[[], datetime], events_kept: int) -> None:
        self._connection = connection
        self._clock = clock
        self._events_kept = events_kept

    def delete(self, record: Record, propagation: Propagation) -> None:
        """Delete the object, or mark it as being deleted when finalizers or, in the foreground, children hold it back."""
        if propagation == "Orphan":
            for child in records.children_of(self._connection, record.uid):
                self._drop_owners(child, {record.uid})
        elif propagation == "Foreground" and records.children_of(self._connection, record.uid):
            self._delete_children_first(record)
            return
        if record.manifest["metadata"].get("finalizers"):
            self._mark(record)
        else:
            self._erase(record)

    def settle(self, record: Record) -> None:
        """Erase an object that is being deleted and that no finalizer holds any more, or whose owners are all gone."""
        metadata = record.manifest["metadata"]
        if metadata.get("deletionTimestamp"):
            if not metadata.get("finalizers"):
                self._erase(record)
        elif records.owner_uids(record.manifest):
            self._collect(record)

    def expire(self, kind: str, older_than: datetime) -> None:
        """Erase the Events last seen before a moment; a cluster forgets them too."""
        moment = _timestamp(older_than)
        for manifest in records.bodies(self._connection, kind, None):
            if manifest.get("lastTimestamp", moment) < moment:
                metadata = manifest["metadata"]
                record = records.find(self._connection, kind, metadata["namespace"], metadata["name"])
                assert record is not None
                self._erase(record)

    def _delete_children_first(self, record: Record) -> None:
        metadata = record.manifest["metadata"]
        finalizers = [*metadata.get("finalizers", []), FOREGROUND]
        owned = {**record.owned, "garbage-collector:": frozenset({_finalizer_path(FOREGROUND)})}
        marked = self._mark(_changed(record, owned=owned, finalizers=finalizers))
        for child in records.children_of(self._connection, marked.uid):
            self._collect(child, gone=marked.uid)

    def _mark(self, record: Record) -> Record:
        """Set the time of deletion, as the API server does, which counts as a new generation."""
        metadata = record.manifest["metadata"]
        if metadata.get("deletionTimestamp"):
            return record
        changes: dict[str, Any] = {"deletionTimestamp": _timestamp(self._clock()), "deletionGracePeriodSeconds": 0}
        if "generation" in metadata:
            changes["generation"] = metadata["generation"] + 1
        return self._put(_changed(record, **changes), record)

    def _erase(self, record: Record) -> None:
        records.erase(self._connection, record, events_kept=self._events_kept)
        for child in records.children_of(self._connection, record.uid):
            self._collect(child)
        for owner in sorted(records.owner_uids(record.manifest)):
            self._finish_foreground(owner)

    def _collect(self, child: Record, gone: str | None = None) -> None:
        """Delete a child without a living owner; of one with other owners drop the references to those that are gone."""
        owners = records.owner_uids(child.manifest)
        dead = {uid for uid in owners if uid == gone or records.find_by_uid(self._connection, uid) is None}
        if dead == owners:
            self.delete(child, "Background" if gone is None else "Foreground")
        elif dead:
            self._drop_owners(child, dead)

    def _drop_owners(self, child: Record, uids: set[str]) -> None:
        metadata = child.manifest["metadata"]
        left = [reference for reference in metadata["ownerReferences"] if reference["uid"] not in uids]
        paths = [
            ("f:metadata", "f:ownerReferences", item_element(("uid",), {"uid": uid}, ("f:metadata",))) for uid in uids
        ]
        changed = _changed(child, ownerReferences=left or None)
        self._put(records.without_field(changed, changed.manifest, paths), child)

    def _finish_foreground(self, owner_uid: str) -> None:
        owner = records.find_by_uid(self._connection, owner_uid)
        if owner is None or records.children_of(self._connection, owner_uid):
            return
        finalizers = owner.manifest["metadata"].get("finalizers", [])
        if FOREGROUND not in finalizers:
            return
        left = [finalizer for finalizer in finalizers if finalizer != FOREGROUND]
        changed = _changed(owner, finalizers=left or None)
        changed = records.without_field(changed, changed.manifest, [_finalizer_path(FOREGROUND)])
        if left:
            self._put(changed, owner)
        else:
            self._erase(changed)

    def _put(self, record: Record, before: Record) -> Record:
        return records.put(self._connection, record, before, events_kept=self._events_kept)


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _finalizer_path(finalizer: str) -> tuple[str, ...]:
    return ("f:metadata", "f:finalizers", item_element((), finalizer, ()))


def _changed(record: Record, *, owned: Any = None, **metadata: Any) -> Record:
    """Return the record with other metadata; a field set to None is left out."""
    merged = {**record.manifest["metadata"], **metadata}
    manifest: Manifest = {
        **record.manifest,
        "metadata": {name: value for name, value in merged.items() if value is not None},
    }
    return Record(
        kind=record.kind,
        namespace=record.namespace,
        name=record.name,
        uid=record.uid,
        version=record.version,
        manifest=manifest,
        owned=record.owned if owned is None else owned,
    )
