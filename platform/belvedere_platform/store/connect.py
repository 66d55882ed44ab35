"""Open the object store that a URL names."""

from __future__ import annotations

from pathlib import Path

from belvedere_platform.errors import InvalidInput
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.protocol import ObjectStore


def connect(url: str) -> ObjectStore:
    """Return the store of `sqlite:///PATH`, the embedded one. Raises InvalidInput for another URL."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "sqlite" and rest.startswith("/") and rest != "/":
        return EmbeddedStore(Path(rest))
    raise InvalidInput(f"the store is {url!r}; it must be sqlite:///PATH with an absolute path")
