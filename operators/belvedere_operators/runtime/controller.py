"""One controller: which keys of its kind are reconciled when, by how many workers, and what becomes of an error."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram

from belvedere_operators.runtime.clock import Clock
from belvedere_operators.runtime.copies import key_of
from belvedere_operators.runtime.queue import Key, WorkQueue
from belvedere_operators.runtime.reflector import Caches, Reflector
from belvedere_platform.errors import BelvedereError, Conflict
from belvedere_platform.store import Kind, Manifest

log = logging.getLogger(__name__)

STUCK_SECONDS = 900.0
"""Every wait inside a reconcile has a deadline, and all of them together are far below this."""
QUEUE_DEPTH = Gauge("belvedere_queue_depth", "Keys that wait to be reconciled", ["controller"])
RECONCILE_SECONDS = Histogram("belvedere_reconcile_seconds", "Time to reconcile one key", ["controller"])
RECONCILE_ERRORS = Counter("belvedere_reconcile_errors_total", "Reconciles that failed", ["controller", "error"])


@dataclass(frozen=True)
class After:
    """Reconcile the key again in so many seconds, even if nothing changes."""

    seconds: float


class Terminal(BelvedereError):
    """Reconciling again cannot help until the object is changed: no retry."""


Reconcile = Callable[[Key], Awaitable[After | None]]
KeysOf = Callable[[Manifest], Iterable[Key]]


def own_key(manifest: Manifest) -> Iterable[Key]:
    """Map an object to its own key."""
    return (key_of(manifest),)


def owner_keys(owner: Kind) -> KeysOf:
    """Map a child to the keys of its owners of one kind, by its owner references."""

    def keys(manifest: Manifest) -> Iterable[Key]:
        metadata = manifest["metadata"]
        for reference in metadata.get("ownerReferences", ()):
            if reference["kind"] == owner.kind and reference["apiVersion"] == owner.api_version:
                yield Key(metadata.get("namespace", ""), reference["name"])

    return keys


def label_keys(label: str) -> KeysOf:
    """Map an object to the key in its namespace that one of its labels names."""

    def keys(manifest: Manifest) -> Iterable[Key]:
        metadata = manifest["metadata"]
        name = metadata.get("labels", {}).get(label)
        if name:
            yield Key(metadata.get("namespace", ""), name)

    return keys


@dataclass(frozen=True, kw_only=True)
class Watched:
    """Another kind whose changes matter, and whose keys they matter to."""

    kind: Kind
    keys: KeysOf
    labels: Mapping[str, str] = field(default_factory=dict)
    optional: bool = False
    """Whether it may be that the cluster does not know the kind."""


class Controller:
    """Reconciles every key of one kind, first when it is seen and then whenever it or something watched changes."""

    def __init__(
        self,
        *,
        name: str,
        kind: Kind,
        reconcile: Reconcile,
        caches: Caches,
        clock: Clock,
        watched: Sequence[Watched] = (),
        labels: Mapping[str, str] | None = None,
        workers: int = 1,
        queue: WorkQueue | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.queue = queue or WorkQueue(clock)
        self._reconcile = reconcile
        self._clock = clock
        self._workers = workers
        self._busy_since: dict[Key, float] = {}
        self._sources: list[Reflector] = [caches.of(kind, labels)]
        self._subscribe(self._sources[0], own_key)
        for other in watched:
            self._sources.append(caches.of(other.kind, other.labels, optional=other.optional))
            self._subscribe(self._sources[-1], other.keys)
        QUEUE_DEPTH.labels(name).set_function(lambda: len(self.queue))

    async def run(self) -> None:
        """Wait for the caches, then reconcile until cancelled."""
        for source in self._sources:
            await source.synced.wait()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._work())
        finally:
            self.queue.close()

    def stuck(self) -> list[str]:
        """Name the keys whose reconcile should have ended long ago."""
        now = self._clock.monotonic()
        return [
            f"{self.kind.kind} {key} has been reconciled for {now - since:.0f} s"
            for key, since in self._busy_since.items()
            if now - since > STUCK_SECONDS
        ]

    async def reconcile_one(self, key: Key) -> None:
        """Reconcile one key now and requeue, back off or give up as the outcome says."""
        started = self._busy_since[key] = self._clock.monotonic()
        try:
            after = await self._reconcile(key)
        except Terminal as error:
            self._count(error)
            self.queue.forget(key)
            log.warning("%s %s cannot go on until it is changed: %s", self.kind.kind, key, error)
        except Conflict as error:
            # Someone else wrote first: the cache will show it, and the next try reads that.
            self._count(error)
            self.queue.retry(key)
        except Exception as error:
            # Any failure stays with its key: a worker that died would stop every other key too.
            self._count(error)
            delay = self.queue.retry(key)
            if isinstance(error, BelvedereError):
                log.warning("%s %s failed, again in %.2f s: %s", self.kind.kind, key, delay, error)
            else:
                log.exception("%s %s failed, again in %.2f s", self.kind.kind, key, delay)
        else:
            self.queue.forget(key)
            if after is not None:
                self.queue.add_after(key, after.seconds)
        finally:
            del self._busy_since[key]
            RECONCILE_SECONDS.labels(self.name).observe(self._clock.monotonic() - started)

    async def _work(self) -> None:
        while (key := await self.queue.get()) is not None:
            try:
                await self.reconcile_one(key)
            finally:
                self.queue.done(key)

    def _subscribe(self, source: Reflector, keys: KeysOf) -> None:
        def changed(manifest: Manifest) -> None:
            for key in keys(manifest):
                self.queue.add(key)

        source.subscribe(changed)

    def _count(self, error: Exception) -> None:
        RECONCILE_ERRORS.labels(self.name, type(error).__name__).inc()
