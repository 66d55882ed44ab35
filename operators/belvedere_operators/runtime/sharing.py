"""Keep one of what is equal in two manifests: those of a kind differ in names and times, and are alike in all else."""

from __future__ import annotations

from typing import Any


def shared(manifest: Any, other: Any) -> Any:
    """Return what is equal to the manifest, made of parts of the other wherever those are equal. The manifest is changed for it."""
    if type(manifest) is not type(other):
        return manifest
    if isinstance(manifest, dict):
        pairs = [(name, value, other[name]) for name, value in manifest.items() if name in other]
    elif isinstance(manifest, list):
        pairs = [(index, value, like) for index, (value, like) in enumerate(zip(manifest, other, strict=False))]
    else:
        return other if manifest == other else manifest
    same = len(pairs) == len(manifest) == len(other)
    for place, value, like in pairs:
        manifest[place] = kept = value if value is like else shared(value, like)
        same = same and kept is like
    return other if same else manifest
