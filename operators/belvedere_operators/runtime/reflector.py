"""A local copy of the objects of one kind, kept current by list and watch, that reports every changed object."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

from prometheus_client import Counter

from belvedere_operators.runtime.clock import Clock
from belvedere_operators.runtime.copies import Copies, Names
from belvedere_operators.runtime.queue import Key
from belvedere_platform.errors import Gone, NotInstalled, Unavailable
from belvedere_platform.store import Kind, Manifest, ObjectStore

log = logging.getLogger(__name__)

Handler = Callable[[Manifest], None]
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 30.0
LONG_WATCH_SECONDS = 5.0
LISTS_AT_ONCE = 3
"""An answer with all objects of a kind is large; of so many the memory is taken at a time."""
LISTS = Counter("belvedere_reflector_lists_total", "Times a kind was listed anew", ["kind"])


class Reflector:
    """Objects read from here are shared: read them, never change them. Without namespaces it follows all of them."""

    def __init__(
        self,
        store: ObjectStore,
        kind: Kind,
        *,
        clock: Clock,
        namespaces: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        optional: bool = False,
        random: Random | None = None,
        turns: asyncio.Semaphore | None = None,
    ) -> None:
        self.kind = kind
        self.absent = False
        """Whether the cluster does not know the kind; an optional one is then taken for read, with no objects."""
        self._optional = optional
        self.synced = asyncio.Event()
        self._labels = dict(labels) if labels else None
        self._copies = Copies()
        self._handlers: list[Handler] = []
        self._followers = tuple(
            _Follower(
                store,
                kind,
                clock=clock,
                namespace=namespace,
                labels=self._labels,
                random=random or Random(),
                turns=turns or asyncio.Semaphore(LISTS_AT_ONCE),
                listed=self._listed,
                changed=self._changed,
                absent=self._is_absent,
            )
            for namespace in (namespaces or (None,))
        )

    @property
    def problem(self) -> str | None:
        """Why the store cannot be followed just now; None when it can."""
        return next((follower.problem for follower in self._followers if follower.problem), None)

    def subscribe(self, handler: Handler) -> None:
        """Call the handler with each object that is there, comes, changes, goes or vanished between two lists."""
        self._handlers.append(handler)
        for manifest in self._copies.all():
            handler(manifest)

    def __len__(self) -> int:
        """Return how many objects there are."""
        return len(self._copies)

    def get(self, key: Key) -> Manifest | None:
        """Return the object last seen, or None."""
        return self._copies.get(key)

    def list(self, namespace: str | None = None, *, labels: Mapping[str, str] | None = None) -> list[Manifest]:
        """Return the objects last seen, in the order of their names."""
        return self._copies.select(namespace, labels or {})

    def index(self, name: str, names: Names) -> None:
        """Find objects by what they name from now on, under the name of the index."""
        self._copies.index(name, names)

    def naming(self, index: str, namespace: str, name: str) -> Sequence[Key]:
        """Return the keys of the objects of a namespace that give a name, in order."""
        return self._copies.naming(index, namespace, name)

    def learn(self, manifest: Manifest) -> None:
        """Take what a write answered, so that the next read sees it even before the watch does."""
        if self._concerns(manifest):
            self._copies.put(_trimmed(manifest))

    async def run(self) -> None:
        """List and watch until cancelled."""
        if len(self._followers) == 1:
            await self._followers[0].run()
        async with asyncio.TaskGroup() as group:
            for follower in self._followers:
                group.create_task(follower.run())

    def _concerns(self, manifest: Manifest) -> bool:
        metadata = manifest["metadata"]
        followed = any(follower.namespace in (None, metadata.get("namespace")) for follower in self._followers)
        carried = metadata.get("labels") or {}
        return followed and all(carried.get(name) == value for name, value in (self._labels or {}).items())

    def _listed(self, manifests: Iterable[Manifest], namespace: str | None, version: str) -> None:
        self.absent = False
        found = [_trimmed(manifest) for manifest in manifests]
        vanished = self._copies.replace(found, namespace, version)
        if all(follower.version is not None for follower in self._followers):
            self.synced.set()
        for manifest in (*found, *vanished):
            self._report(manifest)

    def _is_absent(self) -> None:
        self.absent = True
        if self._optional:
            self.synced.set()

    def _changed(self, manifest: Manifest, deleted: bool) -> None:
        manifest = _trimmed(manifest)
        if deleted:
            self._copies.drop(manifest)
        else:
            self._copies.put(manifest)
        self._report(manifest)

    def _report(self, manifest: Manifest) -> None:
        for handler in self._handlers:
            handler(manifest)


class _Follower:
    """The list and watch of one namespace, or of all."""

    def __init__(
        self,
        store: ObjectStore,
        kind: Kind,
        *,
        clock: Clock,
        namespace: str | None,
        labels: Mapping[str, str] | None,
        random: Random,
        turns: asyncio.Semaphore,
        listed: Callable[[Iterable[Manifest], str | None, str], None],
        changed: Callable[[Manifest, bool], None],
        absent: Callable[[], None],
    ) -> None:
        self.namespace = namespace
        self.version: str | None = None
        self.problem: str | None = None
        self._store = store
        self._kind = kind
        self._clock = clock
        self._labels = labels
        self._random = random
        self._turns = turns
        self._not_older_than: str | None = "0"
        self._listed = listed
        self._changed = changed
        self._absent = absent
        self._delay_seconds = FIRST_DELAY_SECONDS

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            try:
                if self.version is None:
                    await self._relist()
                started = self._clock.monotonic()
                await self._watch()
                # A watch that ends by itself after a while is nothing to wait for; one that ends at once is.
                if self._clock.monotonic() - started > LONG_WATCH_SECONDS:
                    self._delay_seconds = FIRST_DELAY_SECONDS
            except Gone:
                self.version = None
            except Unavailable as error:
                if isinstance(error, NotInstalled):
                    self._absent()
                if self.problem != str(error):
                    log.warning("cannot watch %s: %s", self._kind.plural, error)
                self.problem = str(error)
            await self._clock.sleep(self._delay_seconds * self._random.uniform(0.5, 1.0))
            self._delay_seconds = min(LONGEST_DELAY_SECONDS, self._delay_seconds * 2)

    async def _relist(self) -> None:
        async with self._turns:
            listing = await self._store.list(
                self._kind, self.namespace, labels=self._labels, not_older_than=self._not_older_than
            )
        # Another server may lag behind the one that this copy was followed from: the copy must not go back with it.
        self._not_older_than = None
        LISTS.labels(self._kind.kind).inc()
        self.version = listing.resource_version
        self.problem = None
        self._listed(listing.items, self.namespace, listing.resource_version)

    async def _watch(self) -> None:
        assert self.version is not None
        events = self._store.watch(self._kind, self.namespace, resource_version=self.version, labels=self._labels)
        async for event in events:
            self.version = event.object["metadata"]["resourceVersion"]
            self._delay_seconds = FIRST_DELAY_SECONDS
            self.problem = None
            if event.type != "BOOKMARK":
                self._changed(event.object, event.type == "DELETED")


class Caches:
    """The reflectors of one process: one for each kind and label selector, however many controllers read it."""

    def __init__(self, store: ObjectStore, *, clock: Clock, namespaces: Sequence[str] = ()) -> None:
        self._store = store
        self._clock = clock
        self._namespaces = tuple(namespaces)
        self._turns = asyncio.Semaphore(LISTS_AT_ONCE)
        self._reflectors: dict[tuple[Kind, tuple[tuple[str, str], ...]], Reflector] = {}

    def of(self, kind: Kind, labels: Mapping[str, str] | None = None, *, optional: bool = False) -> Reflector:
        """Return the reflector of a kind, made at the first call. An optional kind need not be installed."""
        selector = tuple(sorted((labels or {}).items()))
        if (kind, selector) not in self._reflectors:
            namespaces = self._namespaces if kind.namespaced else ()
            self._reflectors[kind, selector] = Reflector(
                self._store,
                kind,
                clock=self._clock,
                namespaces=namespaces,
                labels=labels,
                optional=optional,
                turns=self._turns,
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
