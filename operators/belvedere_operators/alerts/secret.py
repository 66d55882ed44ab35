"""The secret that Alertmanager sends, when nobody brought one: made once, kept in a Secret, the same for every operator."""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable

from belvedere_platform.errors import Conflict, InvalidInput, NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import SECRET

TOKEN_KEY = "token"
FIELD_MANAGER = "belvedere-alerts-secret"
_LABELS = {"app.kubernetes.io/part-of": "belvedere", "app.kubernetes.io/component": "operator"}


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(32)


async def kept_token(store: ObjectStore, namespace: str, name: str, *, make: Callable[[], str] = new_token) -> str:
    """Return the token in a Secret, after making the Secret if it is not there. Raises InvalidInput for one without token."""
    try:
        return _token(await store.get(SECRET, name, namespace))
    except NotFound:
        pass
    try:
        # Not forced and under a name of our own, so that of two operators that start together the second meets a conflict.
        manager = f"{FIELD_MANAGER}-{uuid.uuid4().hex[:8]}"
        return _token(await store.apply(_secret(namespace, name, make()), field_manager=manager, force=False))
    except Conflict:
        return _token(await store.get(SECRET, name, namespace))


def _secret(namespace: str, name: str, token: str) -> Manifest:
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.kind,
        "metadata": {"name": name, "namespace": namespace, "labels": dict(_LABELS)},
        "type": "Opaque",
        "data": {TOKEN_KEY: base64.b64encode(token.encode()).decode()},
    }


def _token(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    token = base64.b64decode((manifest.get("data") or {}).get(TOKEN_KEY, "")).decode().strip()
    if not token:
        raise InvalidInput(
            f"the Secret {metadata['namespace']}/{metadata['name']} has no {TOKEN_KEY}: "
            f"put one there, or delete the Secret and the operator makes a new one"
        )
    return token
