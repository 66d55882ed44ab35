"""Noticing what any process wrote: one cheap look at the file for all watches of this process."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from belvedere_platform.errors import BelvedereError, Gone, InvalidInput
from belvedere_platform.store import records
from belvedere_platform.store.database import Database
from belvedere_platform.store.protocol import EventType, WatchEvent

LOOK_EVERY_SECONDS = 0.05
BATCH = 500


class Pulse:
    """Wakes the watches of a kind when an object of it has changed. It looks only while someone watches."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: dict[asyncio.Event, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._data_version = -1
        self._seen = 0

    @contextmanager
    def joined(self, kind: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever objects of the kind may have changed."""
        event = asyncio.Event()
        self._waiting[event] = kind
        if self._timer is None:
            self._look()
        try:
            yield event
        finally:
            del self._waiting[event]
            if not self._waiting:
                self.stop()

    def nudge(self) -> None:
        """Look now, because this process has just written."""
        if self._timer is not None:
            self._timer.cancel()
            self._look()

    def stop(self) -> None:
        """Look no more, and wake everyone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for event in self._waiting:
            event.set()

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_SECONDS, self._look)
        if self._asking is not None and not self._asking.done():
            return
        try:
            version = self._database.data_version()
        except BelvedereError:
            # Each watch meets the same error when it reads, and raises it to its own caller.
            self._wake(None)
            return
        if version != self._data_version:
            self._data_version = version
            self._asking = asyncio.get_running_loop().create_task(self._ask())

    async def _ask(self) -> None:
        try:
            self._seen, kinds = await self._database.read(lambda connection: _changed_kinds(connection, self._seen))
        except BelvedereError:
            self._wake(None)
        else:
            self._wake(kinds)

    def _wake(self, kinds: frozenset[str] | None) -> None:
        for event, kind in self._waiting.items():
            if kinds is None or kind in kinds:
                event.set()


def _changed_kinds(connection: sqlite3.Connection, seen: int) -> tuple[int, frozenset[str]]:
    rows = connection.execute("SELECT DISTINCT kind FROM events WHERE version > ?", (seen,))
    return records.current_version(connection), frozenset(kind for (kind,) in rows)


@dataclass(frozen=True, kw_only=True)
class _Scope:
    kind: str
    namespace: str | None
    labels: Mapping[str, str] | None


@dataclass(frozen=True, kw_only=True)
class _Batch:
    events: list[WatchEvent]
    version: int
    complete: bool


async def watch_events(
    database: Database,
    pulse: Pulse,
    *,
    kind: str,
    namespace: str | None,
    labels: Mapping[str, str] | None,
    resource_version: str,
    bookmark_seconds: float,
) -> AsyncGenerator[WatchEvent, None]:
    """Yield what changed after a version, for ever; a bookmark after each quiet spell."""
    scope = _Scope(kind=kind, namespace=namespace, labels=labels)
    version = _parsed(resource_version)
    with pulse.joined(kind) as changed:
        while True:
            changed.clear()
            batch = await database.read(partial(_read, scope=scope, after=version))
            version = batch.version
            for event in batch.events:
                yield event
            if not batch.complete:
                continue
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that comes in the same turn as the change.
                async with asyncio.timeout(bookmark_seconds):
                    await changed.wait()
            except TimeoutError:
                yield WatchEvent(type="BOOKMARK", object={"metadata": {"resourceVersion": str(version)}})


def _parsed(resource_version: str) -> int:
    if not resource_version.isdecimal() or resource_version == "0":
        raise InvalidInput(f"resourceVersion is {resource_version!r}; it must be one that a list or a watch gave")
    return int(resource_version)


def _read(connection: sqlite3.Connection, scope: _Scope, after: int) -> _Batch:
    current, compacted = records.current_version(connection), records.compacted_version(connection)
    if not compacted <= after <= current:
        raise Gone(f"resourceVersion {after} is not between {compacted} and {current}, the history kept: list again")
    rows = connection.execute(
        "SELECT version, type, body, labels_before FROM events "
        "WHERE kind = ? AND version > ? AND namespace = coalesce(?, namespace) ORDER BY version LIMIT ?",
        (scope.kind, after, scope.namespace, BATCH),
    ).fetchall()
    complete = len(rows) < BATCH
    seen = [_event(type_, body, labels_before, scope.labels) for _, type_, body, labels_before in rows]
    return _Batch(
        events=[event for event in seen if event is not None],
        version=current if complete else rows[-1][0],
        complete=complete,
    )


def _event(
    type_: EventType, body: str, labels_before: str | None, labels: Mapping[str, str] | None
) -> WatchEvent | None:
    """Return the change as a watch with this selector sees it: an object comes and goes as its labels begin and cease to match."""
    manifest = json.loads(body)
    now = type_ != "DELETED" and records.matches(manifest["metadata"].get("labels"), labels)
    before = labels_before is not None and records.matches(json.loads(labels_before), labels)
    if not now and not before:
        return None
    return WatchEvent(type="MODIFIED" if now and before else "ADDED" if now else "DELETED", object=manifest)
