"""Kubernetes Events: what happened to an object, counted instead of repeated."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from datetime import datetime
from typing import Literal

from belvedere_operators.runtime.clock import Clock, parse_timestamp, timestamp
from belvedere_platform.errors import BelvedereError, NotFound
from belvedere_platform.store import Manifest, ObjectStore
from belvedere_platform.store.kinds import EVENT

log = logging.getLogger(__name__)

MESSAGE_BYTES = 1024
KEPT_EVENTS = 4096


class EventRecorder:
    """Writes Events in the name of one component. The same happening again raises the count of the Event that is there.

    What this process wrote last it knows by itself. Of an object that came to be since its first Event nobody else can have
    written any, as only one process acts: there is nothing to read then, and most Events are of this sort.
    """

    def __init__(self, store: ObjectStore, *, clock: Clock, component: str, kept: int = KEPT_EVENTS) -> None:
        self._store = store
        self._clock = clock
        self._component = component
        self._kept = kept
        self._written: OrderedDict[str, tuple[str, int]] = OrderedDict()
        """The first time and the count by name, the last written last."""
        self._complete_since: datetime | None = None
        """Of objects that are younger, every Event is known."""

    async def record(self, about: Manifest, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Record that this happened to the object. An Event that cannot be written is logged and left out."""
        try:
            event = await self._event(about, type_, reason, message)
            await self._store.apply(event, field_manager=self._component)
        except BelvedereError as error:
            log.warning("event %s of %s was not recorded: %s", reason, about["metadata"]["name"], error)
        else:
            self._keep(event)

    async def _event(self, about: Manifest, type_: str, reason: str, message: str) -> Manifest:
        metadata = about["metadata"]
        namespace = metadata.get("namespace", "default")
        message = message[:MESSAGE_BYTES]
        name = event_name(metadata, type_, reason, message)
        now = timestamp(self._clock())
        first, count = await self._before(about, name, namespace) or (now, 0)
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
            "count": count + 1,
        }

    async def _before(self, about: Manifest, name: str, namespace: str) -> tuple[str, int] | None:
        """Return when an Event was first and how often, or None when this is the first time."""
        key = f"{namespace}/{name}"
        if key in self._written:
            return self._written[key]
        born = about["metadata"].get("creationTimestamp")
        if self._complete_since is None:
            self._complete_since = self._clock()
        elif born is not None and parse_timestamp(born) > self._complete_since:
            return None
        try:
            before = await self._store.get(EVENT, name, namespace)
        except NotFound:
            return None
        return before["firstTimestamp"], before["count"]

    def _keep(self, event: Manifest) -> None:
        metadata = event["metadata"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        self._written[key] = (event["firstTimestamp"], event["count"])
        self._written.move_to_end(key)
        if len(self._written) > self._kept:
            self._written.popitem(last=False)
            self._complete_since = self._clock()


def event_name(metadata: Manifest, type_: str, reason: str, message: str) -> str:
    """Return the one name of this happening to this object."""
    identity = "\0".join((metadata.get("uid", ""), metadata["name"], type_, reason, message))
    return f"{metadata['name'][:200]}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
