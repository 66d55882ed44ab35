"""Write an object's status: last, once, and only when it changed."""

from __future__ import annotations

from typing import Any

from belvedere_platform.resources.base import Status
from belvedere_platform.store import Manifest, ObjectStore


def status_fields(status: Status) -> dict[str, Any]:
    """Return a status as it is stored: field names as users write them, nothing that is unset."""
    return status.model_dump(by_alias=True, exclude_none=True, mode="json")


async def write_status(
    store: ObjectStore, manifest: Manifest, before: Status | None, status: Status, *, field_manager: str
) -> bool:
    """Apply the status if it differs from the one before, and return whether it did."""
    # Compared as models: the stored one may have defaults written out.
    if status == before:
        return False
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
    return True
