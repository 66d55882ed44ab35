"""Open the object store that a URL names."""

from __future__ import annotations

from pathlib import Path

from belvedere_platform.errors import InvalidInput
from belvedere_platform.store.embedded import EmbeddedStore
from belvedere_platform.store.protocol import ObjectStore


def connect(url: str) -> ObjectStore:
    """Return the store of `sqlite:///PATH`, the embedded one, or of `kubernetes://`, a cluster's. Raises InvalidInput for another URL."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "sqlite" and rest.startswith("/") and rest != "/":
        return EmbeddedStore(Path(rest))
    if separator and scheme == "kubernetes":
        # The client takes a second and 50 MiB to import, which the embedded store need not pay.
        from belvedere_platform.store.kubernetes import open_url

        return open_url(rest)
    raise InvalidInput(
        f"the store is {url!r}; it must be sqlite:///PATH with an absolute path, "
        "or kubernetes:// with ?kubeconfig=PATH&context=NAME where the default ones are not meant"
    )
