"""Kubernetes Events: what happened to an object, counted instead of repeated."""

from __future__ import annotations

import hashlib
import logging
from typing import Literal

from belvedere_operators.runtime.clock import Clock, timestamp
from belvedere_platform.errors import BelvedereError, NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import EVENT

log = logging.getLogger(__name__)

MESSAGE_BYTES = 1024


class EventRecorder:
    """Writes Events in the name of one component. The same happening again raises the count of the Event that is there."""

    def __init__(self, store: ObjectStore, *, clock: Clock, component: str) -> None:
        self._store = store
        self._clock = clock
        self._component = component

    async def record(self, about: Manifest, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Record that this happened to the object. An Event that cannot be written is logged and left out."""
        try:
            await self._store.apply(await self._event(about, type_, reason, message), field_manager=self._component)
        except BelvedereError as error:
            log.warning("event %s of %s was not recorded: %s", reason, about["metadata"]["name"], error)

    async def _event(self, about: Manifest, type_: str, reason: str, message: str) -> Manifest:
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        message = message[:MESSAGE_BYTES]
        name = event_name(metadata, type_, reason, message)
        now = timestamp(self._clock())
        first, count = now, 1
        try:
            before = await self._store.get(EVENT, name, namespace)
        except NotFound:
            pass
        else:
            first, count = before["firstTimestamp"], before["count"] + 1
        return {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": namespace,
                "uid": metadata.get("uid", ""),
            },
            "type": type_,
            "reason": reason,
            "message": message,
            "source": {"component": self._component},
            "reportingComponent": self._component,
            "reportingInstance": self._component,
            "firstTimestamp": first,
            "lastTimestamp": now,
            "count": count,
        }


def event_name(metadata: Manifest, type_: str, reason: str, message: str) -> str:
    """Return the one name of this happening to this object."""
    identity = "\0".join((metadata.get("uid", ""), metadata["name"], type_, reason, message))
    return f"{metadata['name'][:200]}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
