"""A local copy of the objects of one kind, kept current by list and watch, that reports every changed object."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from random import Random

from prometheus_client import Counter

from belvedere_operators.runtime.clock import Clock
from belvedere_operators.runtime.queue import Key
from belvedere_platform.errors import Gone, Unavailable
from belvedere_platform.store import Kind, Manifest, ObjectStore

log = logging.getLogger(__name__)

Handler = Callable[[Manifest], None]
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 30.0
LONG_WATCH_SECONDS = 5.0
LISTS = Counter("belvedere_reflector_lists_total", "Times a kind was listed anew", ["kind"])


def key_of(manifest: Manifest) -> Key:
    """Return the key of an object."""
    metadata = manifest["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


class Reflector:
    """Objects read from here are shared: read them, never change them."""

    def __init__(
        self,
        store: ObjectStore,
        kind: Kind,
        *,
        clock: Clock,
        namespace: str | None = None,
        labels: Mapping[str, str] | None = None,
        random: Random | None = None,
    ) -> None:
        self.kind = kind
        self.synced = asyncio.Event()
        self._store = store
        self._clock = clock
        self._namespace = namespace
        self._labels = dict(labels) if labels else None
        self._random = random or Random()
        self._objects: dict[Key, Manifest] = {}
        self._handlers: list[Handler] = []
        self._version: str | None = None
        self._delay_seconds = FIRST_DELAY_SECONDS

    def subscribe(self, handler: Handler) -> None:
        """Call the handler with each object that is there, comes, changes, goes or vanished between two lists."""
        self._handlers.append(handler)
        for manifest in self._objects.values():
            handler(manifest)

    def get(self, key: Key) -> Manifest | None:
        """Return the object last seen, or None."""
        return self._objects.get(key)

    def list(self, namespace: str | None = None) -> list[Manifest]:
        """Return the objects last seen, in the order of their names."""
        return [self._objects[key] for key in sorted(self._objects) if namespace is None or key.namespace == namespace]

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                if self._version is None:
                    await self._relist()
                started = self._clock.monotonic()
                await self._watch()
                # A watch that ends by itself after a while is nothing to wait for; one that ends at once is.
                if self._clock.monotonic() - started > LONG_WATCH_SECONDS:
                    self._delay_seconds = FIRST_DELAY_SECONDS
            except Gone:
                self._version = None
            except Unavailable as error:
                log.warning("cannot watch %s: %s", self.kind.plural, error)
            await self._clock.sleep(self._delay_seconds * self._random.uniform(0.5, 1.0))
            self._delay_seconds = min(LONGEST_DELAY_SECONDS, self._delay_seconds * 2)

    async def _relist(self) -> None:
        listing = await self._store.list(self.kind, self._namespace, labels=self._labels)
        LISTS.labels(self.kind.kind).inc()
        before = self._objects
        self._objects = {key_of(manifest): _trimmed(manifest) for manifest in listing.items}
        self._version = listing.resource_version
        self.synced.set()
        for manifest in self._objects.values():
            self._report(manifest)
        for key, manifest in before.items():
            if key not in self._objects:
                self._report(manifest)

    async def _watch(self) -> None:
        assert self._version is not None
        events = self._store.watch(self.kind, self._namespace, resource_version=self._version, labels=self._labels)
        async for event in events:
            self._version = event.object["metadata"]["resourceVersion"]
            self._delay_seconds = FIRST_DELAY_SECONDS
            if event.type == "BOOKMARK":
                continue
            manifest = _trimmed(event.object)
            if event.type == "DELETED":
                self._objects.pop(key_of(manifest), None)
            else:
                self._objects[key_of(manifest)] = manifest
            self._report(manifest)

    def _report(self, manifest: Manifest) -> None:
        for handler in self._handlers:
            handler(manifest)


class Caches:
    """The reflectors of one process: one for each kind, namespace and label selector, however many controllers read it."""

    def __init__(self, store: ObjectStore, *, clock: Clock, namespace: str | None = None) -> None:
        self._store = store
        self._clock = clock
        self._namespace = namespace
        self._reflectors: dict[tuple[Kind, tuple[tuple[str, str], ...]], Reflector] = {}

    def of(self, kind: Kind, labels: Mapping[str, str] | None = None) -> Reflector:
        """Return the reflector of a kind, made at the first call."""
        selector = tuple(sorted((labels or {}).items()))
        if (kind, selector) not in self._reflectors:
            self._reflectors[kind, selector] = Reflector(
                self._store, kind, clock=self._clock, namespace=self._namespace, labels=labels
            )
        return self._reflectors[kind, selector]

    def all(self) -> tuple[Reflector, ...]:
        """Return every reflector asked for so far."""
        return tuple(self._reflectors.values())

    async def wait_synced(self) -> None:
        """Return when each has listed once."""
        for reflector in self.all():
            await reflector.synced.wait()


def _trimmed(manifest: Manifest) -> Manifest:
    manifest["metadata"].pop("managedFields", None)
    return manifest
