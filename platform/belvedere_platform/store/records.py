"""How one object is kept in the embedded store: its row, its version, and the log that watches read."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from belvedere_platform.errors import InvalidInput
from belvedere_platform.store.fields import Fields, Ownership
from belvedere_platform.store.kinds import Kind
from belvedere_platform.store.protocol import EventType, Manifest

LARGEST_OBJECT_BYTES = 1_572_864
"""What etcd takes by default, so that what fits here fits on a cluster too."""
EVENTS_KEPT = 4096
COMPACT_EVERY = 256


@dataclass(frozen=True, kw_only=True)
class Record:
    """One object as stored, with the owner of each field."""

    kind: str
    namespace: str
    name: str
    uid: str
    version: int
    manifest: Manifest
    owned: Ownership


def kind_key(kind: Kind) -> str:
    """Return what a kind is called in the file: the same for every version of its API."""
    return f"{kind.plural}.{kind.group}" if kind.group else kind.plural


def find(connection: sqlite3.Connection, kind: str, namespace: str, name: str) -> Record | None:
    """Return the object, or None."""
    row = connection.execute(
        "SELECT * FROM objects WHERE kind = ? AND namespace = ? AND name = ?", (kind, namespace, name)
    ).fetchone()
    return None if row is None else _record(row)


def find_by_uid(connection: sqlite3.Connection, uid: str) -> Record | None:
    """Return the object, or None."""
    row = connection.execute("SELECT * FROM objects WHERE uid = ?", (uid,)).fetchone()
    return None if row is None else _record(row)


def children_of(connection: sqlite3.Connection, uid: str) -> list[Record]:
    """Return the objects that have an owner reference to this uid."""
    rows = connection.execute(
        "SELECT objects.* FROM owners JOIN objects ON objects.uid = owners.child_uid WHERE owner_uid = ? "
        "ORDER BY kind, namespace, name",
        (uid,),
    )
    return [_record(row) for row in rows]


def bodies(connection: sqlite3.Connection, kind: str, namespace: str | None) -> list[Manifest]:
    """Return the objects of a kind in the order of namespace and name."""
    rows = connection.execute(
        "SELECT body FROM objects WHERE kind = ? AND namespace = coalesce(?, namespace) ORDER BY namespace, name",
        (kind, namespace),
    )
    return [json.loads(body) for (body,) in rows]


def _record(row: tuple[str, str, str, str, int, str, str]) -> Record:
    kind, namespace, name, uid, version, body, owned = row
    return Record(
        kind=kind,
        namespace=namespace,
        name=name,
        uid=uid,
        version=version,
        manifest=json.loads(body),
        owned={manager: frozenset(map(tuple, paths)) for manager, paths in json.loads(owned).items()},
    )


def current_version(connection: sqlite3.Connection) -> int:
    """Return the version of the last write."""
    return _counter(connection, "version")


def compacted_version(connection: sqlite3.Connection) -> int:
    """Return the version up to which the log has been dropped."""
    return _counter(connection, "compacted")


def _counter(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()[0])


def put(connection: sqlite3.Connection, record: Record, before: Record | None, *, events_kept: int) -> Record:
    """Write an object under the next version and log the change. Returns it with that version."""
    record = _versioned(connection, record)
    body = encode(record.manifest)
    owned = {manager: sorted(fields) for manager, fields in sorted(record.owned.items())}
    connection.execute(
        "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?, ?)",
        (record.kind, record.namespace, record.name, record.uid, record.version, body, json.dumps(owned)),
    )
    owners = owner_uids(record.manifest)
    if before is None or owner_uids(before.manifest) != owners:
        connection.execute("DELETE FROM owners WHERE child_uid = ?", (record.uid,))
        connection.executemany("INSERT INTO owners VALUES (?, ?)", [(owner, record.uid) for owner in sorted(owners)])
    _log(connection, "ADDED" if before is None else "MODIFIED", record, body, before, events_kept)
    return record


def erase(connection: sqlite3.Connection, record: Record, *, events_kept: int) -> None:
    """Remove an object and log its last state under the next version."""
    connection.execute("DELETE FROM objects WHERE uid = ?", (record.uid,))
    connection.execute("DELETE FROM owners WHERE child_uid = ?", (record.uid,))
    last = _versioned(connection, record)
    _log(connection, "DELETED", last, encode(last.manifest), record, events_kept)


def _versioned(connection: sqlite3.Connection, record: Record) -> Record:
    row = connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'version' RETURNING value").fetchone()
    version = int(row[0])
    metadata = {**record.manifest["metadata"], "resourceVersion": str(version)}
    return replace(record, version=version, manifest={**record.manifest, "metadata": metadata})


def _log(
    connection: sqlite3.Connection,
    type_: EventType,
    record: Record,
    body: str,
    before: Record | None,
    events_kept: int,
) -> None:
    labels_before = None if before is None else json.dumps(before.manifest["metadata"].get("labels", {}))
    connection.execute(
        "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)",
        (record.version, record.kind, record.namespace, type_, body, labels_before),
    )
    if record.version % min(COMPACT_EVERY, events_kept) == 0:
        compacted = max(record.version - events_kept, compacted_version(connection))
        connection.execute("DELETE FROM events WHERE version <= ?", (compacted,))
        connection.execute("UPDATE counters SET value = ? WHERE name = 'compacted'", (compacted,))


def encode(manifest: Manifest) -> str:
    """Return the object as JSON. Raises InvalidInput for what JSON cannot say, and for an object that is too large."""
    name = manifest["metadata"]["name"]
    try:
        body = json.dumps(manifest, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        size = len(body.encode())
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{manifest['kind']} {name} cannot be written as JSON: {error}") from error
    if size > LARGEST_OBJECT_BYTES:
        raise InvalidInput(
            f"{manifest['kind']} {name} has {size} bytes; at most {LARGEST_OBJECT_BYTES} are allowed: make it smaller"
        )
    return body


def owner_uids(manifest: Manifest) -> frozenset[str]:
    """Return the uids that the object's owner references name."""
    return frozenset(reference["uid"] for reference in manifest["metadata"].get("ownerReferences", ()))


def without_field(record: Record, manifest: Manifest, gone: Iterable[tuple[str, ...]]) -> Record:
    """Return the record with another manifest, in which nobody owns the fields under these paths any more."""
    prefixes = tuple(gone)

    def kept(fields: Fields) -> Fields:
        return frozenset(path for path in fields if not any(path[: len(prefix)] == prefix for prefix in prefixes))

    owned = {manager: kept(fields) for manager, fields in record.owned.items()}
    return replace(record, manifest=manifest, owned={manager: fields for manager, fields in owned.items() if fields})


def matches(labels: Mapping[str, Any] | None, selector: Mapping[str, str] | None) -> bool:
    """Return whether the labels have every pair of the selector."""
    return not selector or all((labels or {}).get(name) == value for name, value in selector.items())
