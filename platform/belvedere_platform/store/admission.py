"""What a manifest must look like before the embedded store merges it, and what the merged object must hold."""

from __future__ import annotations

import re
from typing import Any

from belvedere_platform.errors import InvalidInput
from belvedere_platform.store.kinds import KINDS, Kind
from belvedere_platform.store.protocol import Manifest

SERVER_METADATA = frozenset(
    {
        "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
        "managedFields", "selfLink", "name", "namespace",
    }
)  # fmt: skip
WITHOUT_GENERATION = frozenset({"ConfigMap", "Secret", "Event", "Service", "Lease"})
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_BY_NAME = {(kind.api_version, kind.kind): kind for kind in KINDS}


def kind_of(manifest: Manifest) -> Kind:
    """Return the kind of a manifest. Raises InvalidInput for one that is not known."""
    api_version, name = manifest.get("apiVersion"), manifest.get("kind")
    kind = _BY_NAME.get((str(api_version), str(name)))
    if kind is None:
        known = ", ".join(sorted(f"{kind.kind} ({kind.api_version})" for kind in KINDS))
        raise InvalidInput(f"apiVersion {api_version!r} and kind {name!r} are not known here; known are {known}")
    return kind


def identity(manifest: Manifest, kind: Kind) -> tuple[str, str]:
    """Return namespace and name. Raises InvalidInput for metadata that is missing or malformed."""
    metadata = manifest.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("name"):
        raise InvalidInput(f"metadata.name of a {kind.kind} is missing: give it a name")
    name, namespace = metadata["name"], metadata.get("namespace") or "default"
    for field, value, longest in (("name", name, 253), ("namespace", namespace, 63)):
        if not isinstance(value, str) or len(value) > longest or not _NAME.fullmatch(value):
            raise InvalidInput(
                f"metadata.{field} is {value!r}; it must be lower case letters, digits, '-' and '.', "
                f"begin and end with a letter or digit, and have at most {longest} characters"
            )
    for field in ("labels", "annotations"):
        _check_strings(field, metadata.get(field))
    for reference in metadata.get("ownerReferences") or ():
        missing = [name for name in ("apiVersion", "kind", "name", "uid") if not reference.get(name)]
        if missing:
            raise InvalidInput(f"metadata.ownerReferences has an entry without {', '.join(missing)}: add it")
    return (namespace if kind.namespaced else ""), name


def _check_strings(field: str, values: Any) -> None:
    if values is None:
        return
    if not isinstance(values, dict):
        raise InvalidInput(f"metadata.{field} is {values!r}; it must be a map of strings")
    for name, value in values.items():
        if not isinstance(value, str):
            raise InvalidInput(f"metadata.{field}[{name}] is {value!r}; it must be a string: quote it")


def config_of(manifest: Manifest, *, status: bool) -> Manifest:
    """Return the part of an applied manifest that its manager owns from now on: all but the status, or nothing else."""
    if status:
        return {"status": manifest.get("status") or {}}
    config = {name: value for name, value in manifest.items() if name not in ("apiVersion", "kind", "status")}
    config["metadata"] = {
        name: value
        for name, value in manifest["metadata"].items()
        if name not in SERVER_METADATA and value not in (None, {}, [])
    }
    return config


def wants(manifest: Manifest) -> Manifest:
    """Return what a generation counts: the object without its metadata and status."""
    return {name: value for name, value in manifest.items() if name not in ("metadata", "status")}
