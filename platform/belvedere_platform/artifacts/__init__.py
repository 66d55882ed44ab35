"""Artifacts: datasets, models and engines, content-addressed in an OCI image layout."""

from belvedere_platform.artifacts.errors import ArtifactNotFound, CorruptBlob, StorageFull
from belvedere_platform.artifacts.layout import ArtifactKind, Descriptor, FileEntry, Foreign
from belvedere_platform.artifacts.store import ArtifactStore, Garbage

__all__ = [
    "ArtifactKind",
    "ArtifactNotFound",
    "ArtifactStore",
    "CorruptBlob",
    "Descriptor",
    "FileEntry",
    "Foreign",
    "Garbage",
    "StorageFull",
]
