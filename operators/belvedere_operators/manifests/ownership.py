"""Labels, names and owner references that every child of ours carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from belvedere_platform.store import Manifest

SERVICE_LABEL = "belvedere.dev/service"
VERSION_LABEL = "belvedere.dev/version"
ROLE_LABEL = "belvedere.dev/role"
MANAGED_BY = {"app.kubernetes.io/managed-by": "belvedere"}


def service_labels(service: str, version: str | None = None) -> dict[str, str]:
    """Return the labels of a child of a ModelService, of one version of it if given."""
    labels = {SERVICE_LABEL: service, **MANAGED_BY}
    return {**labels, VERSION_LABEL: version} if version is not None else labels


def owner_reference(owner: Manifest) -> dict[str, Any]:
    """Return a controller owner reference, so that a deleted owner takes its children with it."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def child_metadata(
    owner: Manifest, name: str, labels: Mapping[str, str], annotations: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the metadata of a child in its owner's namespace."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": owner["metadata"]["namespace"],
        "labels": dict(labels),
        "ownerReferences": [owner_reference(owner)],
    }
    return {**metadata, "annotations": dict(annotations)} if annotations else metadata
