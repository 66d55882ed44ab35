"""Say what became of an object: Events first, then its status, last, once, and only when it changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from belvedere_operators.runtime import Clock, EventRecorder
from belvedere_platform.resources.base import Status
from belvedere_platform.store import Manifest, ObjectStore


@dataclass(frozen=True, kw_only=True)
class Happening:
    """An Event worth recording."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


def status_fields(status: Status) -> dict[str, Any]:
    """Return a status as it is stored: field names as users write them, nothing that is unset or empty.

    An API server refuses an empty map or list in the place of one that had members: it takes those away and calls the rest null.
    """
    return _without_empty(status.model_dump(by_alias=True, exclude_none=True, mode="json"))


def _without_empty(fields: dict[str, Any]) -> dict[str, Any]:
    below = {name: _without_empty(one) if isinstance(one, dict) else one for name, one in fields.items()}
    return {name: one for name, one in below.items() if one not in ({}, [])}


class Reporter:
    """Reports for one controller, in its name."""

    def __init__(self, store: ObjectStore, clock: Clock, *, field_manager: str) -> None:
        self._store = store
        self._field_manager = field_manager
        self._events = EventRecorder(store, clock=clock, component=field_manager)

    async def report(
        self, manifest: Manifest, before: Status | None, status: Status, happenings: Iterable[Happening]
    ) -> None:
        """Record what happened and apply the status, if it differs from the one before."""
        if status == before:
            return
        # Before the status: once that says so, nobody would know that the Event is still to be written.
        for one in happenings:
            await self._events.record(manifest, one.type, one.reason, one.message)
        await write_status(self._store, manifest, before, status, field_manager=self._field_manager)


async def write_status(
    store: ObjectStore, manifest: Manifest, before: Status | None, status: Status, *, field_manager: str
) -> None:
    """Apply the status if it differs from the one before."""
    # Compared as models: the stored one may have defaults written out.
    if status == before:
        return
    metadata = manifest["metadata"]
    await store.apply_status(
        {
            "apiVersion": manifest["apiVersion"],
            "kind": manifest["kind"],
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            "status": status_fields(status),
        },
        field_manager=field_manager,
    )
