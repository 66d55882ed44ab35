"""Read objects that may not be there."""

from __future__ import annotations

from belvedere_operators.runtime import Key
from belvedere_platform.errors import NotFound
from belvedere_platform.store import Kind, Manifest, ObjectStore


async def find(store: ObjectStore, kind: Kind, key: Key) -> Manifest | None:
    """Return the object, or None when it does not exist."""
    try:
        return await store.get(kind, key.name, key.namespace)
    except NotFound:
        return None


async def find_standing(store: ObjectStore, kind: Kind, key: Key) -> Manifest | None:
    """Return the object, or None when it does not exist or is being deleted: then its children go before it, and stay away."""
    manifest = await find(store, kind, key)
    return None if manifest is None or "deletionTimestamp" in manifest["metadata"] else manifest


def condition_is_true(manifest: Manifest, type_: str) -> bool:
    """Return whether an object's condition of a type is there and `True`."""
    conditions = (manifest.get("status") or {}).get("conditions", ())
    return any(one["type"] == type_ and one["status"] == "True" for one in conditions)
