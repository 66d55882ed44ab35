"""Write what an executor saw into the status of an object, only when it differs from what stands there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from belvedere_operators.runtime import set_condition
from belvedere_platform.resources.base import Condition
from belvedere_platform.store import Manifest, ObjectStore

ConditionFields = tuple[str, bool, str, str]
"""Type, whether it is true, reason, message."""


def conditions_after(manifest: Manifest, seen: Iterable[ConditionFields], *, now: datetime) -> list[dict[str, Any]]:
    """Return the conditions of an object with these set. A condition that is not among them is dropped."""
    wanted = list(seen)
    names = {type_ for type_, _, _, _ in wanted}
    conditions = tuple(
        Condition.model_validate(entry)
        for entry in manifest.get("status", {}).get("conditions", ())
        if entry["type"] in names
    )
    for type_, true, reason, message in wanted:
        conditions = set_condition(
            conditions,
            type_=type_,
            status="True" if true else "False",
            reason=reason,
            message=message,
            generation=manifest["metadata"].get("generation"),
            now=now,
        )
    return [entry.model_dump(by_alias=True, exclude_none=True) for entry in conditions]


async def write_status(store: ObjectStore, manifest: Manifest, status: Mapping[str, Any], *, manager: str) -> None:
    """Apply a status. Raises NotFound when the object has gone meanwhile."""
    present = {name: value for name, value in status.items() if value is not None}
    if manifest.get("status", {}) == present:
        return
    metadata = manifest["metadata"]
    await store.apply_status(
        {
            "apiVersion": manifest["apiVersion"],
            "kind": manifest["kind"],
            "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
            "status": present,
        },
        field_manager=manager,
    )
