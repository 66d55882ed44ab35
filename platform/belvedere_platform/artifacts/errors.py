"""What can go wrong with artifacts.

NotFound       └── ArtifactNotFound   no such tag or digest
Unavailable    └── BlobsCollected     a collection took what a push had found or brought
CorruptData    ├── CorruptBlob        stored bytes do not hash to their name
               └── StorageFull        the disk or quota ended; nothing half-written is left
"""

from __future__ import annotations

from belvedere_platform.errors import CorruptData, NotFound, Unavailable


class ArtifactNotFound(NotFound):
    """The artifact store has no artifact of this tag or digest."""


class BlobsCollected(Unavailable):
    """Garbage collection removed blobs that nothing referred to yet."""

    def __init__(self, where: str, digest: str) -> None:
        super().__init__(
            f"garbage collection in {where} removed what {digest} needs before it was named there; try again"
        )


class CorruptBlob(CorruptData):
    """A blob's bytes do not have the digest that names them."""

    def __init__(self, *, where: str, name: str, expected: str, got: str | None) -> None:
        self.expected, self.got = expected, got
        found = "the blob is missing" if got is None else f"its bytes have the digest {got}"
        super().__init__(
            f"{name} is corrupt in {where}: {found}, expected {expected}; "
            "push the artifact again (a push replaces damaged blobs), or restore the store from a copy"
        )


class StorageFull(CorruptData):
    """There is no room to write."""

    def __init__(self, where: str, doing: str) -> None:
        super().__init__(
            f"no space left in {where} while {doing}; nothing half-written was kept: "
            "free some space (`belvedere artifact gc` removes what nothing refers to) and try again"
        )
