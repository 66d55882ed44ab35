"""Which artifact a reference names, where one of a kind is wanted: people mix up models and their engines."""

from __future__ import annotations

from belvedere_platform.artifacts import ArtifactKind, ArtifactStore, Descriptor
from belvedere_platform.errors import InvalidInput

_HINT = {
    ArtifactKind.MODEL: "build one of it: belvedere engine build --model-digest REFERENCE",
    ArtifactKind.ENGINE: "it names its model: belvedere artifact show REFERENCE",
}


def resolve_as(kind: ArtifactKind, store: ArtifactStore, reference: str) -> Descriptor:
    """Return the artifact that a tag or digest names. Raises InvalidInput for one of another kind."""
    found = store.resolve(reference)
    if found.kind is not kind:
        hint = f"; {_HINT[found.kind]}" if found.kind in _HINT else ""
        raise InvalidInput(
            f"{reference} is {_named(found.kind)}, and {_named(kind)} is wanted{hint.replace('REFERENCE', reference)}"
        )
    return found


def _named(kind: ArtifactKind) -> str:
    return f"{'an' if kind is ArtifactKind.ENGINE else 'a'} {kind.value}"
