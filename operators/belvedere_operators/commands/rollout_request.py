"""Ask the controller for something on a person's behalf, and wait until it has been done."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from belvedere_operators.controllers.modelservice.gather import REQUEST_ANNOTATION
from belvedere_operators.delivery.rollout import Verb
from belvedere_platform.errors import Gone, Unavailable
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import MODEL_SERVICE

# Two managers, because applying one thing must not withdraw the other.
REQUEST_MANAGER = "belvedere-rollout-request"
PAUSE_MANAGER = "belvedere-rollout-pause"


async def ask(store: ObjectStore, manifest: Manifest, verb: Verb, *, candidate: str | None) -> str:
    """Write the request, and return what identifies it."""
    identity = uuid.uuid4().hex[:12]
    request: dict[str, Any] = {"verb": verb, "id": identity}
    if candidate is not None:
        request["candidate"] = candidate
    annotations = {REQUEST_ANNOTATION: json.dumps(request)}
    await store.apply(_partial(manifest, annotations=annotations), field_manager=REQUEST_MANAGER)
    return identity


async def set_paused(store: ObjectStore, manifest: Manifest, *, paused: bool) -> None:
    """Set spec.rollout.paused and nothing else."""
    changed = {**_partial(manifest), "spec": {"rollout": {"paused": paused}}}
    await store.apply(changed, field_manager=PAUSE_MANAGER)


async def wait_until_done(
    store: ObjectStore, manifest: Manifest, verb: Verb, identity: str, timeout_seconds: float
) -> str:
    """Return a sentence about how the rollout ended. Raises Unavailable when the operator has not done it in time."""
    metadata = manifest["metadata"]
    try:
        async with asyncio.timeout(timeout_seconds):
            status = await _until_handled(store, metadata["name"], metadata["namespace"], identity)
    except TimeoutError as error:
        raise Unavailable(
            f"{verb} of {metadata['namespace']}/{metadata['name']} was asked for, but not done within {timeout_seconds:g} s: "
            f"{_last_word(await store.get(MODEL_SERVICE, metadata['name'], metadata['namespace']))}"
        ) from error
    rollout, stable = status.get("rollout", {}), status.get("stable", {})
    return f"{rollout.get('candidate')} is {str(rollout.get('phase')).lower()}; {stable.get('version')} serves"


async def _until_handled(store: ObjectStore, name: str, namespace: str, identity: str) -> dict[str, Any]:
    while True:
        listing = await store.list(MODEL_SERVICE, namespace)
        for item in listing.items:
            if item["metadata"]["name"] == name and _handled(item, identity):
                return dict(item["status"])
        try:
            async for event in store.watch(MODEL_SERVICE, namespace, resource_version=listing.resource_version):
                if event.object["metadata"].get("name") == name and _handled(event.object, identity):
                    return dict(event.object["status"])
        except Gone:
            continue


def _handled(manifest: Manifest, identity: str) -> bool:
    rollout = manifest.get("status", {}).get("rollout") or {}
    return rollout.get("lastRequestId") == identity


def _last_word(manifest: Manifest) -> str:
    for condition in manifest.get("status", {}).get("conditions", ()):
        if condition["type"] == "RolloutProgressing":
            return f"{condition['reason']}, {condition['message']}"
    return "the operator has not looked at it; is it running? `belvedere up` starts it"


def _partial(manifest: Manifest, annotations: dict[str, str] | None = None) -> Manifest:
    metadata = {"name": manifest["metadata"]["name"], "namespace": manifest["metadata"]["namespace"]}
    return {
        "apiVersion": manifest["apiVersion"],
        "kind": manifest["kind"],
        "metadata": {**metadata, "annotations": annotations} if annotations else metadata,
    }
