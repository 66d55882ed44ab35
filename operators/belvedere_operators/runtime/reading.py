"""Stores around the store: one reads from the caches without missing its own writes, one counts what is asked of the server."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from prometheus_client import Counter, Histogram

from belvedere_operators.runtime.copies import key_of
from belvedere_operators.runtime.passing import PassingStore
from belvedere_operators.runtime.queue import Key
from belvedere_operators.runtime.reflector import Caches, Reflector
from belvedere_platform.errors import BelvedereError, NotFound, NotInstalled
from belvedere_platform.store import Kind, Listing, Manifest, ObjectStore
from belvedere_platform.store.admission import kind_of

REQUESTS = Counter("belvedere_store_requests_total", "Calls of the object store", ["verb", "kind", "outcome"])
REQUEST_SECONDS = Histogram("belvedere_store_request_seconds", "Time of one call of the object store", ["verb"])
APPLIED_ANNOTATION = "belvedere.dev/applied"
T = TypeVar("T")


class MeteredStore(PassingStore):
    """Counts every call by verb, kind and outcome: `ok`, or the name of the error. A watch is counted when it begins."""

    def __init__(self, store: ObjectStore, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__(store)
        self._monotonic = monotonic

    async def _passed(self, verb: str, kind: Kind, call: Awaitable[T]) -> T:
        began, outcome = self._monotonic(), "ok"
        try:
            return await call
        except BelvedereError as error:
            outcome = type(error).__name__
            raise
        finally:
            REQUESTS.labels(verb, kind.kind, outcome).inc()
            REQUEST_SECONDS.labels(verb).observe(self._monotonic() - began)

    def _watches(self, kind: Kind) -> None:
        REQUESTS.labels("watch", kind.kind, "ok").inc()


def _marked(manifest: Manifest, field_manager: str) -> Manifest:
    """Return the manifest with the digest of it and of who applies it."""
    metadata = manifest["metadata"]
    given = {name: value for name, value in metadata.items() if name != "resourceVersion"}
    text = json.dumps([field_manager, {**manifest, "metadata": given}], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    annotations = {**metadata.get("annotations", {}), APPLIED_ANNOTATION: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def _stands(marked: Manifest, known: Manifest) -> bool:
    """Return whether an object has every field of what is to be applied, and was last applied as that."""
    return "deletionTimestamp" not in known["metadata"] and _covers(known, marked)


def _covers(known: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(known, Mapping) and all(
            name in known and _covers(known[name], value) for name, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(known, list)
            and len(known) == len(wanted)
            and all(_covers(one, other) for one, other in zip(known, wanted, strict=True))
        )
    return bool(known == wanted)


class CachedStore(PassingStore):
    """Reads kinds that are followed from their copy, and teaches the copy each write, so that a reconcile sees its own last one.

    What was applied before and still stands is not applied again: each object carries a digest of what it was last applied
    as, so that a field that is no longer given is noticed, and a field that someone else changed differs from the copy.
    Of a kind that is followed by a label only, what lacks the label is not there: it is not ours to touch.
    """

    def __init__(self, store: ObjectStore, caches: Caches) -> None:
        super().__init__(store)
        self._caches = caches

    async def get(self, kind: Kind, name: str, namespace: str) -> Manifest:
        """Return the object. Raises NotFound."""
        reflector = self._followed(kind)
        if reflector is None:
            return await super().get(kind, name, namespace)
        found = reflector.get(Key(namespace, name))
        if found is None:
            raise NotFound(f"{kind.plural} {name!r} not found")
        return found

    async def list(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        not_older_than: str | None = None,
    ) -> Listing:
        """Return the objects of a kind. From a copy there is no resource version to watch from."""
        reflector = self._followed(kind)
        if reflector is None:
            return await super().list(kind, namespace, labels=labels, not_older_than=not_older_than)
        return Listing(items=reflector.list(namespace, labels=labels), resource_version="")

    async def apply(self, manifest: Manifest, *, field_manager: str, force: bool = True) -> Manifest:
        """Create the object or merge the fields given."""
        reflector = self._followed(kind_of(manifest))
        if reflector is None:
            return self._learned(await super().apply(manifest, field_manager=field_manager, force=force))
        if reflector.absent:
            raise NotInstalled(reflector.problem or f"the cluster does not know {reflector.kind.plural}")
        marked = _marked(manifest, field_manager)
        known = reflector.get(key_of(manifest))
        if known is not None and _stands(marked, known):
            return known
        return self._learned(await super().apply(marked, field_manager=field_manager, force=force))

    async def apply_status(self, manifest: Manifest, *, field_manager: str) -> Manifest:
        """Apply `status` alone."""
        return self._learned(await super().apply_status(manifest, field_manager=field_manager))

    def _followed(self, kind: Kind) -> Reflector | None:
        return next((one for one in self._caches.all() if one.kind == kind and one.synced.is_set()), None)

    def _learned(self, manifest: Manifest) -> Manifest:
        kind = kind_of(manifest)
        for reflector in self._caches.all():
            if reflector.kind == kind:
                reflector.learn(manifest)
        return manifest
